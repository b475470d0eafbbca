"""One environment behind the one place where its answers are checked, its actions fitted and held, its errors named."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakSet

import gymnasium as gym
import numpy as np

from saddlepoint.envs import answers
from saddlepoint.envs.answers import FLOATS, Wrong
from saddlepoint.envs.make import FlatObservation, inner_bounds, lidars_of, open_env, require_spaces, time_limit
from saddlepoint.envs.pixels import PixelObservation
from saddlepoint.envs.snapshot import restore, snapshot
from saddlepoint.envs.tasks import action_repeat_of
from saddlepoint.foreign import blame, foreign
from saddlepoint.types import EnvSetup, EnvShape, ForeignFault, NonFiniteError, NotMade, UserError

SMALL = 1e76
"""a sum of two squares within which both numbers are finite in float32"""
TRUTHS = FLOATS | {bool, np.bool_}
"""types of a success that can be read"""
DOUBTS = (ValueError, KeyError, RuntimeWarning, FloatingPointError)
"""what an answer raises that is not to be taken at first sight: other parts, no cost, numbers too large for float32"""
# Numbers that are too large for float32 get a sentence of their own.
warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning, "saddlepoint.envs.guarded")


class Answer(NamedTuple):
    """What an environment answered to one action."""

    observation: np.ndarray  # (observation,)
    reward: float
    cost: np.ndarray  # (constraints,) float64
    terminated: bool
    truncated: bool
    success: float  # NaN where the task says nothing of it

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


class GuardedEnv:
    """``env``, called ``name``, as everything that plays episodes sees it: training, workers, evaluation, video.

    Every answer is checked in type, shape, range and finiteness. Actions are clipped to the bounds and given in the
    space's own number type; each is held for ``setup.action_repeat`` simulator steps, or until the episode ends, while
    rewards and costs are summed. After ``setup.cut`` steps an episode is truncated, and after ``setup.longest`` where nothing else limits it.

    All methods but ``close`` and ``snapshot`` raise ``ForeignFault`` naming the environment and the answer for whatever
    is wrong with it, and ``NonFiniteError`` for what is not finite.
    """

    def __init__(
        self, env: gym.Env[Any, Any], name: str, setup: EnvSetup | None = None, number: int | None = None
    ) -> None:
        setup = setup or EnvSetup(name)
        while isinstance(env, FlatObservation):
            env = env.env  # judge what its author wrote
        require_spaces(env, name, setup.flatten)
        self.env, self.name, self.number = env, name, number
        self.action_repeat = setup.action_repeat or 1
        ends = (setup.cut, setup.longest if time_limit(env) is None else None)
        self.longest = min((end for end in ends if end is not None), default=None)
        self.constraints: int | None = None
        """how many costs every step has; None until that is known"""
        self.needs_cost = True
        self.age = 0
        """steps of the episode so far"""
        self._told = False
        """whether a success that cannot be read was told of"""
        self.on_step: Callable[[], None] | None = None
        """called after each simulator step, as a film needs"""
        self._pixels = env if isinstance(env, PixelObservation) else None
        self._stepped = env.env if isinstance(env, PixelObservation) else env
        several = self.action_repeat > 1 or self.longest is not None or self._pixels is not None
        self.step: Callable[[np.ndarray], Answer] = self._decide if several else self.step_once
        """(action,) -> the sums over the simulator steps that it was held for, and the last observation"""
        self._observations = answers.Observations(env.observation_space)
        self._kind, self._shape = self._observations.quick, env.observation_space.shape
        self._finite = bytearray(self._observations.size)
        """which numbers of the last observation are finite, as bytes: to look for a zero in them is the quickest test"""
        self._marks = np.frombuffer(self._finite, bool)
        actions = env.action_space
        self._low, self._high = actions.low, actions.high  # type: ignore[attr-defined]
        self._dtype = np.dtype(actions.dtype)

    @classmethod
    def open(cls, setup: EnvSetup, render_mode: str | None = None, number: int | None = None) -> GuardedEnv:
        """The environment of ``setup``. Raises ``UserError`` where it cannot be made or used."""
        env = open_env(setup, render_mode)
        if any(other.env.unwrapped is env.unwrapped for other in _OPEN):
            raise NotMade(f"{setup.name} could not be made: it gave an environment that is open already; make another one at each call.")
        try:
            made = cls(env, setup.name, replace(setup, action_repeat=action_repeat_of(setup)), number)
        except UserError:
            with contextlib.suppress(Exception, SystemExit):
                env.close()
            raise
        _OPEN.add(made)
        return made

    @property
    def shape(self) -> EnvShape:
        """What a learner needs to know; ``constraints`` must be known."""
        assert self.constraints is not None
        low, high = inner_bounds(self.env.action_space)  # type: ignore[arg-type]
        image = self._pixels.image if self._pixels is not None else None
        size = self._observations.size
        bounds = tuple(low.tolist()), tuple(high.tolist())
        return EnvShape(size, *bounds, self.constraints, image, self._dtype.name, lidars=lidars_of(self.env, self.name))

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Begin an episode: (observation,)."""
        self.age = 0
        try:
            seen = answers.read_reset(self.env.reset(seed=seed))
            return seen if self._pixels is not None else self._observations.read(seen)
        except Wrong as wrong:
            raise self._fault(wrong, "at reset") from wrong
        except BaseException as error:
            raise self._error(error) from error

    def step_once(self, action: np.ndarray) -> Answer:
        """One step of the simulator: (action,) -> its answer, checked.

        Most answers are right beyond doubt, by exact types and one look at the float32 copy, and are taken at first
        sight; ``_judge`` looks at whatever else there may be. Both come to the same (``tests/test_guard.py``).
        """
        fitted = maximum(action, self._low)
        if fitted.dtype is self._dtype:
            minimum(fitted, self._high, out=fitted)
        else:
            fitted = minimum(maximum(action.astype(self._dtype), self._low), self._high)
        self.age += 1
        try:
            answer = self._stepped.step(fitted)
        except BaseException as error:
            answer = self._not_five(fitted, error)
        try:
            if type(answer) is tuple:
                seen, reward, terminated, truncated, info = answer
                if (
                    type(seen) is ndarray and seen.dtype is self._kind and seen.shape == self._shape
                    and (terminated is False or terminated is True) and (truncated is False or truncated is True)
                    and type(info) is dict and type(reward) in FLOATS and type(price := info["cost"]) in FLOATS
                    and (gain := float(reward)) * gain + (price := float(price)) * price <= SMALL and price >= 0.0
                    and isfinite(copy := seen.astype(float32), self._marks) is self._marks and 0 not in self._finite
                    and ((success := info.get("success", nan)) is nan or type(success) in TRUTHS)
                    and self.constraints == 1 and self.on_step is None
                ):  # fmt: skip
                    return _new(Answer, (copy, gain, array((price,)) if price else NO_COST, terminated, truncated, float(success)))
        except DOUBTS:
            pass
        return self._judge(answer)

    def _decide(self, action: np.ndarray) -> Answer:
        """``step`` where actions are held, episodes end after ``longest`` steps, or pictures are seen."""
        age, reward, cost = self.age, 0.0, np.zeros(())
        for _ in range(self.action_repeat):
            self.age = age
            answer = self.step_once(action)
            reward, cost = reward + answer.reward, cost + answer.cost
            if answer.ended:
                break
        try:
            answers.require_sums(reward, cost)
            seen = answer.observation if self._pixels is None else self._pixels.look()
        except Wrong as wrong:
            raise self._fault(wrong, f"at step {self.age} of its episode") from wrong
        except BaseException as error:
            raise self._error(error) from error
        over = self.longest is not None and self.age >= self.longest and not answer.terminated
        return Answer(seen, reward, cost, answer.terminated, answer.truncated or over, answer.success)

    def _not_five(self, action: np.ndarray, error: BaseException) -> Any:
        """What the environment itself answers, where Gymnasium's time limit failed to take it apart; raises the fault
        for any other error."""
        if not isinstance(error, ValueError) or "to unpack" not in str(error):
            raise self._error(error) from error
        try:
            answer = self._stepped.unwrapped.step(action)
        except BaseException as own:
            raise self._error(own) from own
        if isinstance(answer, tuple) and len(answer) == 5:
            raise self._error(error) from error
        return answer

    def _judge(self, answer: Any) -> Answer:
        try:
            return self._read(answer)
        except Wrong as wrong:
            raise self._fault(wrong, f"at step {self.age} of its episode") from wrong
        except BaseException as error:
            raise self._error(error) from error

    def _read(self, answer: Any) -> Answer:
        """The parts of an answer, each checked; where pictures are seen the observation is as it came. Raises ``Wrong``."""
        seen, own, terminated, truncated, info = _five(answer)
        reward = answers.read_reward(own)
        terminated, truncated = answers.read_flag("terminated", terminated), answers.read_flag("truncated", truncated)
        cost = answers.read_cost(info, self.constraints, self.needs_cost)
        if len(cost) and self.constraints is None:
            self.constraints = len(cost)
        observation = self._observations.read(seen) if self._pixels is None else seen
        if self.on_step is not None:
            self.on_step()
        success = self._success(info) if "success" in info else nan
        return Answer(observation, reward, cost, terminated, truncated, success)

    def _success(self, info: dict[str, Any]) -> float:
        """NaN where it is None, and where it is no number, which is told once."""
        success = answers.read_success(info)
        if success is not None:
            return success
        if not self._told:
            self._told = True
            kind = type(info["success"]).__name__
            warnings.warn(f'{self.name} gives info["success"] of type {kind}, which counts as not given: give a number or a truth value', stacklevel=2)
        return np.nan

    def draw(self) -> Any:
        """What the environment renders."""
        return foreign(self.name, self.env.render)

    def snapshot(self) -> dict[str, Any]:
        """Where the environment is (``saddlepoint.envs.snapshot``); one that fails at this is not restorable."""
        try:
            return {**snapshot(self.env), "age": self.age}
        except BaseException as error:
            fault = self._error(error)
            return {"restorable": False, "reason": str(fault), "age": self.age}

    def restore(self, state: dict[str, Any]) -> bool:
        """Go where ``snapshot`` was taken. False, and the environment must be reset, where that fails."""
        try:
            restored = restore(self.env, state)
        except BaseException as error:
            warnings.warn(f"restoring failed: {self._error(error)}", stacklevel=2)
            return False
        self.age = state.get("age", 0)
        return restored

    def close(self) -> None:
        """Close it. An environment that fails at this costs nothing: it is only warned about."""
        _OPEN.discard(self)
        try:
            self.env.close()
        except BaseException as error:
            fault = self._error(error)
            with contextlib.suppress(UserWarning):
                warnings.warn(f"closing failed, and nothing is lost: {fault}", stacklevel=2)

    def _fault(self, wrong: Wrong, when: str) -> ForeignFault | NonFiniteError:
        where = "" if self.number is None else f" in environment {self.number}"
        kind = ForeignFault if wrong.finite else NonFiniteError
        return kind(f"{self.name} {wrong.what} {when}{where}{wrong.advice}.")

    def _error(self, error: BaseException) -> UserError:
        """The fault for an error of the environment's; raises one that is not its own. What is one already stays."""
        if isinstance(error, (ForeignFault, NonFiniteError)):
            return error
        if isinstance(error, UserError):
            return ForeignFault(str(error))
        return blame(self.name, error)


_OPEN: WeakSet[GuardedEnv] = WeakSet()
"""those that were opened and are not closed yet"""

NO_COST = np.zeros(1)
"""of most steps, and of one constraint"""
NO_COST.flags.writeable = False
ndarray, float32, array, nan = np.ndarray, np.float32, np.array, np.nan
isfinite, maximum, minimum = np.isfinite, np.maximum, np.minimum
_new = tuple.__new__  # of a NamedTuple, in half the time of its own constructor

_FIVE = ": return observation, reward, terminated, truncated, info"


def _five(answer: Any) -> tuple[Any, ...]:
    """The five values of what ``step`` returned. Raises ``Wrong``."""
    if type(answer) is tuple and len(answer) == 5:
        return answer
    if not isinstance(answer, (tuple, list)):
        raise Wrong(f"returns a {type(answer).__name__} from step()", _FIVE)
    if len(answer) == 6:
        raise Wrong("returns six values from step()", ": wrap it in saddlepoint.envs.adapters.SafetyGymnasiumAdapter")
    if len(answer) != 5:
        raise Wrong(f"returns {len(answer)} values from step()", _FIVE)
    return tuple(answer)
