"""Figures of measurements that lack a quantity."""

import json

from affnorm_zoo.diagnostics.figures import plot_training


def test_a_last_step_at_a_learning_rate_of_zero_has_no_direction_and_leaves_the_figure(tmp_path):
    row = {"layer": "fc", "cv": 0.5, "step_cosine": 0.2, "step_moving_cosine": 0.1}
    still = row | {"step_cosine": None, "step_moving_cosine": None}
    records = [{"kind": "divergence", "update": update, "layers": [layer]} for update, layer in ((0, row), (9, still))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plot_training(tmp_path / "metrics.jsonl", tmp_path / "divergence.png")
    assert (tmp_path / "divergence.png").stat().st_size > 1000
