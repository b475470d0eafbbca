"""Our navigation tasks against recordings of Safety-Gymnasium 1.0.0 (MuJoCo 2.3.3), from states written into them.

Tolerances are those that the recordings' README suggests: current MuJoCo solves contacts a little differently, and the
first step of an episode begins with contacts at a distance of exactly zero, where rounding decides.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest

from saddlepoint.envs.navigation.layout import sample_layout
from saddlepoint.envs.navigation.lidar import lidar
from tests.parity.navigation import ARRAYS, FLIPPED, META, NAMES, Recorded

each = pytest.mark.parametrize("name", NAMES)
EXACT = 1e-10


class Tolerance(NamedTuple):
    """Largest difference after one step: the robot's position, rotation matrix, velocities, accelerometer; positions of
    the objects, distances in the reward, lidar readings.
    """

    position: float
    rotation: float
    qvel: float
    accelerometer: float
    objects: float
    reward: float
    lidar: float


FREE = {
    "Point": Tolerance(1e-9, 1e-9, 1e-7, 1e-5, 1e-6, 1e-9, 1e-5),
    "Car": Tolerance(1e-6, 1e-5, 1e-3, 1e-2, 1e-6, 1e-6, 1e-4),
}
FIRST = {
    "Point": FREE["Point"]._replace(objects=3e-3, lidar=2e-2),
    "Car": Tolerance(3e-3, 2e-2, np.inf, np.inf, 3e-3, 3e-3, 5e-2),
}
CONTACT = {
    "Point": Tolerance(1e-3, np.inf, np.inf, np.inf, np.inf, 5e-3, np.inf),
    "Car": Tolerance(5e-3, np.inf, np.inf, np.inf, np.inf, 3e-2, np.inf),
}
FLIPS = 0.01  # share of steps with contacts whose cost may differ, beside those that it is known of
OPEN_LOOP = {  # after 8 steps: position, rotation
    "settled": {"Point": (1e-5, 1e-3), "Car": (3e-3, 2e-2)},
    "rstep": {"Point": (1e-3, 2e-2), "Car": (1e-1, 2e-1)},
}


def close(got: Any, expected: Any, atol: float, what: str) -> None:
    if np.isfinite(atol):
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=what)


def near(recorded: Recorded) -> bool:
    """Whether the robot may touch a solid object within a step from here."""
    scene, task = recorded.worlds.scene, recorded.task
    solid = [kind for kind in task.kinds if kind.motion != "ghost"]
    reach = task.robot.radius + 2.0 * task.step_seconds
    return any((scene.distances(kind.name) < reach + kind.radius + kind.travel / 10).any() for kind in solid)


def begin(recorded: Recorded, reset: int) -> None:
    recorded.worlds.rngs[0] = np.random.RandomState(recorded.meta["resets"][reset]["seed"])
    recorded.worlds.begin(0)


@each
def test_model(name: str) -> None:
    recorded = Recorded(name)
    model, meta = recorded.worlds.physics.blueprint.model, recorded.meta
    assert (model.nq, model.nv) == (meta["nq"], meta["nv"])
    np.testing.assert_array_equal(model.dof_damping, meta["model"]["dofs"]["damping"])
    assert model.opt.timestep == meta["physics_timestep"]
    assert model.dof_armature.max() == model.dof_frictionloss.max() == 0.0
    for body in meta["model"]["bodies"]:
        if body["name"] != "world" and body["dynamic"]:
            ours = model.body(body["name"].removesuffix("obj"))
            close(ours.mass[0], body["mass"], 1e-12, body["name"])
            close(np.sort(ours.inertia), np.sort(body["inertia"]), 1e-12, body["name"])
            close(ours.ipos, body["ipos"], 1e-12, body["name"])
    solid = [geom for geom in meta["model"]["geoms"] if geom["collides"]]
    collides = model.geom_contype > 0
    assert (model.geom_condim == 6).all()
    ours = np.column_stack([model.geom_size, model.geom_friction, model.geom_rgba])[collides][1:]  # not the floor
    theirs = np.array([
        [*(geom["size"] if geom["type"] != "sphere" else (geom["size"][0], 0, 0)), *geom["friction"], *geom["rgba"]]
        for geom in solid if geom["name"] != "floor"
    ])  # fmt: skip
    np.testing.assert_allclose(np.sort(ours, axis=0), np.sort(theirs, axis=0), atol=1e-6)


@each
def test_layouts_come_from_the_seed_to_the_bit(name: str) -> None:
    recorded = Recorded(name)
    resets, task = recorded.groups["reset"], recorded.task
    assert list(task.plan().names) == recorded.layout
    for k, reset in enumerate(recorded.meta["resets"]):
        sampled = sample_layout(np.random.RandomState(reset["seed"]), task.plan())
        np.testing.assert_array_equal(sampled, resets["layout_xy_sampled"][k])
        begin(recorded, k)
        scene = recorded.worlds.scene
        goal = recorded.objects.index("goal")
        np.testing.assert_array_equal(scene.xyz[0, goal], resets["goal_pos"][k])
        for i, body in enumerate(recorded.objects):
            close(scene.xyz[0, i], resets["body_xpos"][k][recorded.bodies[body]], 1e-15, body)
        data = recorded.worlds.physics.load(0)
        model = recorded.worlds.physics.blueprint.model
        for body, row in recorded.bodies.items():
            if body not in ("world", "goal") and "mocap" not in body:  # the goal's cylinder has no visible yaw
                quat = data.body(body).xquat if model.body(body) else None
                close(np.abs(quat @ resets["body_xquat"][k][row]), 1.0, 1e-14, body)
        if recorded.task.objective.among:
            assert scene.target[0] == resets["goal_button"][k]


@each
def test_observation_at_reset(name: str) -> None:
    recorded = Recorded(name)
    for k in range(len(recorded.meta["resets"])):
        begin(recorded, k)
        check_observation(recorded, recorded.worlds.observe()[0], recorded.groups["reset"]["obs"][k], still=True)


def check_observation(recorded: Recorded, ours: np.ndarray, theirs: np.ndarray, still: bool) -> None:
    assert [(part, length) for part, length in recorded.task.parts.items()] == [
        (part, stop - start) for part, start, stop, _ in recorded.meta["obs_layout"]
    ]
    for part in recorded.task.parts:
        if part != "accelerometer":
            close(recorded.part(ours, part), recorded.part(theirs, part), EXACT, part)
        elif still and recorded.robot == "Point":
            close(recorded.part(ours, part), recorded.part(theirs, part), 1e-8, part)


@each
def test_observation_reward_and_costs_of_written_states(name: str) -> None:
    recorded = Recorded(name)
    states, static = recorded.groups["state"], recorded.groups["static"]
    for i in range(len(recorded.meta["states"])):
        recorded.put({key: values[i] for key, values in states.items()}, 0)
        free = not static["contact_count"][i].any()
        check_observation(recorded, recorded.worlds.observe()[0], static["obs"][i], still=free)
        outcome = recorded.worlds.judge()
        label = recorded.meta["states"][i]["label"]
        close(outcome.reward[0], static["reward"][i], EXACT, label)
        assert outcome.reached[0] == static["goal_met"][i], label
        assert outcome.cost[0] == static["cost"][i], label
        np.testing.assert_array_equal(recorded.costs(outcome), np.nan_to_num(static["costs"][i]), label)


def compare(recorded: Recorded, group: str, reset: int, index: tuple[int, ...], tolerance: Tolerance) -> bool:
    """One step from a state that has been put; whether cost and goal agree."""
    data, worlds = recorded.groups[group], recorded.worlds
    outcome = worlds.step(data["action"][index][None])
    observation = worlds.observe()[0]
    ours, theirs = recorded.motion(), recorded.recorded_motion(group, reset, *index)
    where = f"{group} {index}"
    for part in ("position", "rotation", "qvel", "objects"):
        close(ours[part], theirs[part], getattr(tolerance, part), f"{where}: {part}")
    for part in ("accelerometer", *(part for part in recorded.task.parts if part.endswith("lidar"))):
        limit = tolerance.accelerometer if part == "accelerometer" else tolerance.lidar
        if outcome.reached[0] == data["goal_met"][index]:
            close(recorded.part(observation, part), recorded.part(data["obs"][index], part), limit, f"{where}: {part}")
    # Push pays for two distances to the box, which may be off by as much as the box.
    slack = 2 * tolerance.objects if "Push" in recorded.task.name else 0.0
    close(outcome.reward[0], data["reward"][index], tolerance.reward + slack, f"{where}: reward")
    assert not outcome.stuck[0]
    agree = bool(outcome.cost[0] == data["cost"][index] and outcome.reached[0] == data["goal_met"][index])
    if agree and recorded.task.objective.among:
        assert worlds.timer[0] == data["after_timer"][index]
        assert worlds.scene.target[0] == data["after_goal_button"][index]
    if agree:
        goal = worlds.scene.xyz[0, recorded.objects.index("goal")]
        close(goal, data["after_goal_pos"][index], 1e-12, f"{where}: goal")
        assert worlds.physics.clock[0] == pytest.approx(data["after_time"][index], abs=1e-12)
    return agree


@each
def test_one_step_without_contacts(name: str) -> None:
    """From states after 50 steps, and from those of the first eight steps of an episode."""
    recorded, compared = Recorded(name), 0
    for reset in range(len(recorded.meta["resets"])):
        for group in ("settled", "rstep"):
            begin(recorded, reset)
            if group == "settled":
                recorded.worlds.rngs[0].random_sample(50)  # what the steps before drew
            for t in range(len(recorded.groups[group]["reward"][reset])):
                recorded.put(recorded.before(group, reset, t), reset)
                tolerance = FREE[recorded.robot]
                if group == "rstep":
                    wobble = FREE[recorded.robot]._replace(objects=3e-3, lidar=2e-3)
                    tolerance = FIRST[recorded.robot] if t == 0 else wobble
                free = not near(recorded)
                agree = compare(recorded, group, reset, (reset, t), tolerance if free else CONTACT[recorded.robot])
                assert agree or not free
                compared += free
    assert compared > 0


@pytest.mark.parametrize("robot", [robot for robot in CONTACT if any(name.startswith(robot) for name in NAMES)])
def test_one_step_with_contacts(robot: str) -> None:
    """From the hand-made states, with the recorded random stream."""
    differ, steps = Counter[str](), 0
    for name in (name for name in NAMES if name.startswith(robot)):
        recorded, last = Recorded(name), -1
        for i, state in enumerate(recorded.groups["sstep"]["state_index"]):
            seed = recorded.meta["states"][state]["rng_seed"] if state != last else None
            recorded.put(recorded.before("sstep", i), 0, seed)
            differ[f"{recorded.meta['states'][state]['label']}/{robot}"] += not compare(recorded, "sstep", 0, (i,), CONTACT[robot])
            steps, last = steps + 1, state
    unknown = sum(max(count - FLIPPED.get(label, 0), 0) for label, count in differ.items())
    assert unknown <= FLIPS * steps, +differ


@each
@pytest.mark.parametrize("group", ["settled", "rstep"])
def test_eight_steps_in_a_row(name: str, group: str) -> None:
    recorded = Recorded(name)
    for reset in range(len(recorded.meta["resets"])):
        recorded.put(recorded.before(group, reset, 0), reset)
        steps = len(recorded.groups[group]["reward"][reset])
        touched = False
        for t in range(steps):
            touched |= near(recorded)
            recorded.worlds.step(recorded.groups[group]["action"][reset, t][None])
        if not touched:
            ours, theirs = recorded.motion(), recorded.recorded_motion(group, reset, reset, steps - 1)
            position, rotation = OPEN_LOOP[group][recorded.robot]
            close(ours["position"], theirs["position"], position, f"{group} {reset}")
            close(ours["rotation"], theirs["rotation"], rotation, f"{group} {reset}")


def test_lidar_alone() -> None:
    cases = {key.removeprefix("lidar/"): ARRAYS[key] for key in ARRAYS.files if key.startswith("lidar/")}
    assert len(cases["n"]) == len(META["lidar_tags"])
    for i, count in enumerate(cases["n"]):
        ring = np.zeros(count, np.int64)
        place, turn = cases["agent_pos"][i][None], cases["agent_mat"][i][None]
        readings = lidar(place, turn, cases["object_xy"][i, :count][None], ring, 1, cases["lidar"].shape[1])
        close(readings[0, 0], cases["lidar"][i], EXACT, META["lidar_tags"][i])
