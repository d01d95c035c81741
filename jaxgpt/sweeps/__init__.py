"""Train many models.

search_space  generators of overrides: grid, zipped, draws, product
members       the members' configs, folders and outcomes
groups        group the members and train each group in one program
halving       successive halving
launchers     processes, Ray tasks, SLURM arrays
results       results.csv, the table, best.py
plots         curves.png, fields.png
"""
