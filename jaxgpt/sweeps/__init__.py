"""Many runs: members, groups that one program trains, launchers, results."""
