"""Pictures of the navigation tasks, drawn without a display."""

import gymnasium as gym
import numpy as np
import pytest

from saddlepoint.envs import make_env
from saddlepoint.envs.navigation.env import NavigationEnv
from saddlepoint.types import UserError


def picture(camera, name="CarGoal1", **kwargs):
    env = make_env(f"saddlepoint/{name}-v0", render_mode="rgb_array", camera=camera, width=160, height=120, **kwargs)
    env.reset(seed=0)
    frame = env.render()
    return env, frame


def test_both_cameras_show_the_world_and_differ():
    frames = []
    for camera in ("follow", "fixed"):
        env, frame = picture(camera)
        assert frame.shape == (120, 160, 3)
        assert frame.dtype == np.uint8
        assert frame.std() > 10
        frames.append(frame.astype(float))
        env.close()
    assert np.abs(frames[0] - frames[1]).mean() > 5


def test_hazards_and_lidar_are_visible_and_a_picture_changes_nothing():
    env, frame = picture("fixed")
    worlds = env.unwrapped.worlds
    state = env.unwrapped.snapshot()
    blue = (frame[..., 2].astype(int) - frame[..., 0] > 60).sum()
    assert blue > 50  # the hazards
    np.testing.assert_array_equal(env.render(), frame)
    worlds.readings = np.zeros_like(worlds.readings)
    assert not np.array_equal(env.render(), frame)
    after = env.unwrapped.snapshot()
    assert all(np.array_equal(state[key], after[key]) for key in state if key != "rngs")
    env.close()


def test_the_vectorised_form_draws_every_world():
    env = gym.make_vec(
        "saddlepoint/PointPush1-v0", 2, vectorization_mode="vector_entry_point", render_mode="rgb_array", width=64,
        height=64,
    )  # fmt: skip
    env.reset(seed=0)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 2
    assert not np.array_equal(*frames)
    env.close()


def test_a_picture_that_is_too_large_is_refused():
    env = NavigationEnv("PointGoal0", width=100_000)
    env.reset(seed=0)
    with pytest.raises(UserError, match="pixels"):
        env.render()
