"""The training loop."""

import pytest

from codec.training import TrainingConfig, learning_rate


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup=10, final_rate=0.1)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.1)
