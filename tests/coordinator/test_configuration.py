"""Settings: completed from the manifest, and refused with a sentence when they cannot be used."""

import math
from typing import Any

import pytest

from chainfed.coordinator.configuration import complete
from chainfed.core.errors import BadInputError
from chainfed.v1 import device_service_pb2
from tests.coordinator.conftest import config, make_manifest


def test_what_is_not_set_comes_from_the_manifest() -> None:
    done = complete(config(), make_manifest({}))
    assert (done.adapter_lr, done.head_lr, done.foat_threshold, done.warmup_rounds) == (1e-3, 3e-3, 0.8, 1)
    assert (done.global_loss_weight, done.global_branch_statistics) == (0.1, "window_end")
    assert (done.round_deadline_seconds, done.min_updates, done.over_selection) == (86_400, 1, 1.0)


def test_what_is_set_stands_even_when_it_is_zero() -> None:
    given = config(
        foat_threshold=0.0,
        global_loss_weight=0.0,
        warmup_rounds=0,
        final_head_lr=0.5,
        global_branch_statistics=device_service_pb2.GLOBAL_BRANCH_STATISTICS_LAST_LAYER,
    )
    done = complete(given, make_manifest({}))
    assert (done.foat_threshold, done.global_loss_weight, done.warmup_rounds, done.final_head_lr) == (0, 0, 0, 0.5)
    assert done.global_branch_statistics == "last_layer"


def test_the_message_says_every_value() -> None:
    done = complete(config(), make_manifest({}))
    assert complete(done.to_message(), make_manifest({})) == done


def test_a_language_model_has_no_heads_to_warm_up() -> None:
    manifest = make_manifest({}, task={"kind": "language_modelling", "max_target_tokens": 4})
    with pytest.raises(BadInputError, match="warmup_rounds is 1, but a language model's head is not trained"):
        complete(config(warmup_rounds=1), manifest)
    assert complete(config(warmup_rounds=0), manifest).warmup_rounds == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"devices_per_round": 0}, "devices_per_round is 0"),
        ({"min_devices": 0}, "min_devices is 0"),
        ({"foat_threshold": 1.5}, "foat_threshold is 1.5, but must be 0 to 1"),
        ({"foat_threshold": math.nan}, "foat_threshold is nan"),
        ({"adapter_lr": 0.0}, "adapter_lr is 0, but must be above 0"),
        ({"head_lr": math.inf}, "head_lr is inf"),
        ({"final_head_lr": -1.0}, "final_head_lr is -1"),
        ({"foat_examples": 1}, "foat_examples is 1"),
        ({"local_epochs": 0}, "local_epochs is 0"),
        ({"over_selection": 5.0}, "over_selection is 5"),
        ({"max_update_norm": -2.0}, "max_update_norm is -2"),
        ({"window_size": 4}, "window_size is 4.*programs for 1, 2, 3"),
        ({"min_updates": 4}, "min_updates is 4, but only 3 devices"),
        ({"global_branch_statistics": 0}, "global_branch_statistics 0 is unknown"),
    ],
)
def test_a_bad_value_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        complete(config(**changes), make_manifest({}))
