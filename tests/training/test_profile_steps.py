"""--profile_steps: which steps are traced, and that a trace is there afterwards."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from jaxgpt.config import UserError
from jaxgpt.training.profile_steps import ProfileSteps


@pytest.mark.parametrize("spec", ["", "10", "15:10", "10:10", "a:b", "-1:3", "1:2:3"])
def test_a_wrong_spec_is_refused(spec):
    with pytest.raises(UserError, match="START:STOP"):
        ProfileSteps(spec, "nowhere")


def test_a_trace_of_the_steps_asked_for(tmp_path):
    folder = tmp_path / "profile"
    profile = ProfileSteps("2:4", folder)
    work = jax.jit(lambda x: x @ x)
    x = jnp.ones((32, 32))
    for step in range(6):
        profile.at(step)
        assert folder.exists() == (step >= 2)
        with jax.profiler.StepTraceAnnotation("step", step_num=step):
            x = work(x)
    profile.close()
    (trace,) = folder.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    seen = {str(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    assert seen == {"2", "3"}
    assert list(folder.rglob("*.xplane.pb"))


def test_a_run_that_ends_inside_closes_the_trace_and_without_a_spec_nothing_is_written(tmp_path):
    profile = ProfileSteps("0:100", tmp_path / "profile")
    profile.at(0)
    profile.close()
    profile.close()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    nothing = ProfileSteps(None, tmp_path / "other")
    nothing.at(0)
    nothing.close()
    assert not (tmp_path / "other").exists()
