"""Our tasks in Gymnasium's registry: in either order of imports, by module:id, without PyTorch."""

import subprocess
import sys

import pytest

END = (
    "env = gymnasium.make('{}'); env.reset(seed=0); env.step(env.action_space.sample()); print('torch' in sys.modules)"
)


@pytest.mark.parametrize(
    ("imports", "id"),
    [
        ("import saddlepoint, gymnasium", "saddlepoint/Toy-v0"),
        ("import gymnasium, saddlepoint", "saddlepoint/Toy-v0"),
        ("import gymnasium", "saddlepoint:saddlepoint/Toy-v0"),
        ("import gymnasium as gymnasium; from gymnasium import spaces; import saddlepoint", "saddlepoint/ToyTwo-v0"),
        ("import saddlepoint.envs, gymnasium", "saddlepoint/Toy-v0"),
    ],
)
def test_gymnasium_makes_our_tasks_without_pytorch(imports: str, id: str) -> None:
    program = f"import sys; {imports}; {END.format(id)}"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_importing_us_alone_imports_neither() -> None:
    program = (
        "import sys, saddlepoint; print([name for name in ('torch', 'gymnasium', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
