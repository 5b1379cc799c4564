"""Short forms of tests/endurance.py and tests/fuzz.py, whose long ones are commands of their own."""

import endurance
import fuzz
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ["kills", "signals", "disk"])
def test_stopped_commands_end_as_if_nobody_had_stopped_them(row):
    only = ("generate.py", "train_unet.py") if row == "disk" else ()
    table, wrong = endurance.endure([row], 3, 12, 0, 0, 0, only=only)
    assert table and not wrong, "\n".join(wrong)


def test_memory_and_files_stay_flat():
    table, wrong = endurance.endure(["long"], 0, 0, images=400, slices=200, steps=300)
    assert len(table) == 4 and not wrong, "\n".join(wrong)


def test_damaged_inputs_are_refused_in_a_sentence():
    table, broken = fuzz.fuzz(200, seed=0, jobs=2)
    assert sum(table.values()) == 200 and not broken, "\n".join(broken)
