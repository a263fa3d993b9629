"""Cool-down and warm-up on a simulated clock."""

from __future__ import annotations

from harness.meters.thermal import cool_down, warm_up


class World:
    """A clock that moves during sleep and work, and a device that cools and warms with it."""

    def __init__(self, start_c: float, per_s: float, limit_c: float) -> None:
        self.now = 0.0
        self.start_c, self.per_s, self.limit_c = start_c, per_s, limit_c

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        return self.now

    def read_c(self) -> float:
        value = self.start_c + self.per_s * self.now
        return max(value, self.limit_c) if self.per_s < 0 else min(value, self.limit_c)


def test_cool_down_stops_at_the_band_or_at_the_cap() -> None:
    world = World(80, -2, 30)
    settled = cool_down(world.read_c, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds, settled.start_c, settled.end_c) == (True, 15, 80, 50)
    world = World(80, -0.1, 30)
    settled = cool_down(world.read_c, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds) == (False, 60)


def test_a_device_without_a_thermometer_is_not_waited_for() -> None:
    world = World(80, 0, 80)
    settled = cool_down(lambda: None, below_c=50, cap_s=60, clock=world.clock, sleep=world.sleep)
    assert (settled.reached, settled.seconds, settled.end_c) == (False, 0, None)


def test_warm_up_goes_on_until_heat_and_step_time_are_steady() -> None:
    world = World(40, 1, 70)  # warms for 30 s
    settled = warm_up(lambda: world.sleep(0.5), world.read_c, cap_s=300, clock=world.clock)
    assert settled.reached
    assert 38 <= settled.seconds <= 42
    assert settled.steps == settled.seconds * 2


def test_warm_up_waits_for_slowing_steps_up_to_the_cap() -> None:
    world = World(70, 1, 70)
    durations = iter([0.1 * 1.05**index for index in range(200)])
    settled = warm_up(lambda: world.sleep(next(durations)), world.read_c, cap_s=50, clock=world.clock)
    assert not settled.reached
    assert settled.facts()["seconds"] >= 50
