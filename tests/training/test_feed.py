import pytest
import torch

from training.feed import choose_feed, packed_bytes
from training.resources import available_memory, device_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PLENTY, LITTLE = 10**12, 10**5


@pytest.fixture
def choose(tiny, monkeypatch):
    """A function that chooses for a machine, and a device, with so much free memory."""

    def make(wanted, device=CPU, memory=PLENTY, on_device=PLENTY, **options):
        monkeypatch.setattr("training.feed.available_memory", lambda: memory)
        monkeypatch.setattr("training.feed.device_memory", lambda _: on_device)
        return choose_feed(wanted, tiny, device, **options)

    return make


def test_auto_takes_the_fastest_place_that_the_slots_fit(choose):
    assert choose("auto").feed == "memory"
    assert choose("auto", memory=LITTLE).feed == "stream"
    assert choose("auto", CUDA).feed == "device"
    assert choose("auto", CUDA, on_device=LITTLE).feed == "memory"
    assert choose("auto", CUDA, on_device=LITTLE, memory=LITTLE).feed == "stream"


def test_half_of_what_is_free_is_left_for_the_model(choose, tiny):
    needed = packed_bytes(tiny)
    assert needed == 20_000 * 20  # 8 slots of 2 bytes and the label
    assert choose("auto", memory=2 * needed).feed == "memory"
    assert choose("auto", memory=2 * needed - 1).feed == "stream"


def test_a_split_of_several_windows_needs_memory_for_its_base_order(choose, tiny):
    assert choose("auto", memory=2 * packed_bytes(tiny), window_rows=1000).feed == "stream"


def test_where_free_memory_is_unknown_it_is_taken_to_suffice(choose):
    assert choose("auto", memory=None).feed == "memory"


@pytest.mark.parametrize("wanted", ["memory", "stream"])
def test_what_is_asked_for_is_taken(choose, wanted):
    assert choose(wanted, memory=LITTLE).feed == wanted


def test_on_a_cpu_the_devices_memory_is_the_machines(choose):
    assert choose("device").feed == "memory"
    assert choose("device", CUDA, on_device=LITTLE).feed == "device"


def test_the_choice_says_why(choose):
    assert str(choose("auto")) == "memory: the splits take 0 MB as packed slots, 1,000,000 MB free"
    assert "more than half of what is free: 0 MB free" in str(choose("auto", memory=LITTLE))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "max", "memory.current": "5"}, 2048),
        ({"memory.max": "1000", "memory.current": "400"}, 600),
        ({"memory.max": "1000", "memory.current": "1400"}, 0),
        ({"memory/memory.limit_in_bytes": "700", "memory/memory.usage_in_bytes": "100"}, 600),
        ({}, 2048),
    ],
)
def test_available_memory_is_what_the_system_or_the_container_leaves(tmp_path, files, expected):
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:       2 kB\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_memory(tmp_path, tmp_path / "cgroup") == expected


def test_where_the_system_does_not_tell_it_is_unknown(tmp_path):
    assert available_memory(tmp_path, tmp_path) is None


def test_the_cpus_memory_is_the_machines():
    assert abs(device_memory(CPU) - available_memory()) < 1 << 30
