"""How far a node has come, and which generation it boots."""

from netbootd.boot.sessions import Sessions
from netbootd.model.event import BootEvent, Outcome, Stage
from netbootd.model.node import Node

NODE = Node(name="valar-0", image="noble", hostname="valar-0", address="192.0.2.9")


class World:
    """A clock and a store of generations."""

    def __init__(self):
        self.now = 1000.0
        self.current = "gen1"
        self.gone = set()
        self.sessions = Sessions(
            lambda image: self.current, lambda image, ident: ident not in self.gone, clock=lambda: self.now
        )

    def see(self, stage, outcome=Outcome.OK, path="x", detail=""):
        return self.sessions.observe(
            BootEvent(
                self.now, "tftp", path, outcome, stage, node="valar-0", key=NODE.key, image="noble", detail=detail
            )
        )


def test_a_boot_keeps_its_generation_through_a_publish():
    world = World()
    assert world.sessions.generation(NODE, "start4.elf") == "gen1"
    world.current = "gen2"
    world.now += 1
    assert world.sessions.generation(NODE, "config.txt") == "gen1"
    world.now += 60  # a large initramfs took its time
    assert world.sessions.generation(NODE, "vmlinuz") == "gen1"
    assert world.sessions.generation(NODE) == "gen1"


def test_the_next_boot_takes_up_the_current_generation():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    for stage in (Stage.FIRMWARE, Stage.KERNEL, Stage.ROOT):
        world.see(stage)
    world.current = "gen2"
    assert world.sessions.generation(NODE) == "gen1"  # NFS and HTTP go on with it
    assert world.sessions.generation(NODE, "start4.elf") == "gen2"
    assert world.see(Stage.FIRMWARE).stage == Stage.FIRMWARE


def test_a_power_cycle_in_the_firmware_is_a_new_boot_after_a_pause():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    world.see(Stage.KERNEL)
    world.current = "gen2"
    world.now += 11
    assert world.sessions.generation(NODE, "start4.elf") == "gen2"
    assert world.see(Stage.FIRMWARE).stage == Stage.FIRMWARE


def test_a_file_that_takes_its_time_is_no_pause():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    world.current = "gen2"
    world.now += 25  # under loss; firmware gives a file up to 30 s
    world.see(Stage.FIRMWARE, path="start4.elf")
    assert world.sessions.generation(NODE, "config.txt") == "gen1"


def test_a_generation_that_is_gone_is_left():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    world.current, world.gone = "gen2", {"gen1"}
    assert world.sessions.generation(NODE, "vmlinuz") == "gen2"


def test_stages_only_go_forward_within_a_boot():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    assert world.see(Stage.KERNEL).stage == Stage.KERNEL
    assert world.see(Stage.FIRMWARE, path="bcm2711.dtb").stage == Stage.KERNEL
    assert world.see(Stage.ROOT).stage == Stage.ROOT
    assert world.see(Stage.READY).stage == Stage.READY


def test_a_probe_of_the_kernel_is_not_the_kernel():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    world.see(Stage.FIRMWARE)
    assert world.see(Stage.KERNEL, Outcome.PROBE).stage == Stage.FIRMWARE
    state = world.see(Stage.KERNEL, Outcome.ABORTED, path="vmlinuz", detail="timed out")
    assert (state.stage, state.outcome, state.detail) == (Stage.FIRMWARE, Outcome.ABORTED, "vmlinuz: timed out")


def test_a_miss_is_only_news_while_nothing_was_found():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    state = world.see(Stage.FIRMWARE, Outcome.MISS, path="start4.elf")
    assert (state.outcome, state.detail) == (Outcome.MISS, "start4.elf is missing")
    world.see(Stage.FIRMWARE)
    state = world.see(Stage.FIRMWARE, Outcome.MISS, path="recovery.elf")
    assert (state.outcome, state.detail) == (Outcome.OK, "")


def test_a_boot_under_way_survives_a_restart_of_the_service():
    world = World()
    world.sessions.generation(NODE, "start4.elf")
    record = world.see(Stage.KERNEL)
    later = Sessions(lambda image: "gen2", lambda image, ident: True, [record], clock=lambda: world.now)
    assert later.generation(NODE, "overlays/x.dtbo") == "gen1"
    assert later.generation(NODE) == "gen1"


def test_a_flood_of_nodes_that_are_refused_does_not_grow_without_end():
    world = World()
    for number in range(20_000):
        world.sessions.observe(BootEvent(world.now, "tftp", "x", Outcome.FAILED, Stage.FIRMWARE, key=f"{number:08x}"))
    kept = {record.key for record in world.sessions.records()}
    assert len(kept) < 10_000
    assert "00004e1f" in kept
