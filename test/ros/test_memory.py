"""A node that is configured and cleaned up again and again does not grow."""

from pathlib import Path

from vpr_process import Camera

EVERYTHING = {"keyframes__min_period_s": 0.0, "keyframes__min_novelty_bits": 0}
# Far below twelve times what one engine holds.
GROWTH_MIB = 10.0


def resident_mib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def test_cycles_of_the_lifecycle_do_not_grow_the_process(start, monkeypatch):
    # Else the allocator gives threads memory of their own, and sizes vary by 40 MiB with which
    # thread of which cycle got what.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    node = start(**EVERYTHING, keyframes__max_period_s=0.0)
    camera = Camera(node)
    sizes = []
    for cycle in range(12):
        node.activate()
        for second in range(4):
            camera.show(second, 100.0 * cycle + second)
        assert node.change("deactivate") and node.change("cleanup")
        sizes.append(resident_mib(node.process.pid))
    assert max(sizes[2:]) - sizes[1] < GROWTH_MIB, sizes
    assert node.stop() == 0
