"""One epoch of training and the scores after it, on a small network and generated tensors."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from tests.weaktr.test_model import micro, pictures
from weaktr.engine import train_one_epoch, validate
from weaktr.model import weaktr_loss
from weaktr.train import parameter_groups
from wsss.errors import UserError

LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]])


def batch(seed=0, **changes):
    return {
        "image": pictures(4, 3, 96, 96, seed=seed),
        "labels": LABELS,
        "image_id": [f"picture{i}" for i in range(4)],
    } | changes


def epoch(model, batches, rate, optimizer=None, steps=None):
    return train_one_epoch(
        model,
        batches,
        optimizer or torch.optim.SGD(parameter_groups(model, 1.0, 1.0), lr=1.0),
        lambda step: rate,
        first_step=10,
        device=torch.device("cpu"),
        amp_dtype=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        progress=tqdm(disable=True),
        on_step=lambda step, values: steps.append((step, values)) if steps is not None else None,
    )


def test_steps_losses_and_rates():
    model, twin = micro(), micro()
    steps = []
    groups = parameter_groups(model, 3.0, 5.0)
    means = epoch(model, [batch(0), batch(1)], 0.01, torch.optim.SGD(groups, lr=1.0), steps)
    assert [step for step, _ in steps] == [10, 11]
    for name in ("loss", "class", "coarse", "fine"):
        assert means[name] == pytest.approx(np.mean([values[name] for _, values in steps]))
    # the first step by hand: plain descent, at three rates
    loss = weaktr_loss(twin.train()(batch(0)["image"]), LABELS)["loss"]
    assert steps[0][1]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    scaled = {"cls_token": 5.0, "head": 3.0, "adaptive_attention_fusion": 3.0}
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * scaled.get(name.split(".")[0], 1.0) * parameter.grad
    again = weaktr_loss(twin(batch(1)["image"]), LABELS)["loss"]
    assert steps[1][1]["loss"] == pytest.approx(again.item(), rel=1e-5)


def test_every_trained_parameter_is_in_one_group():
    model = micro()
    grouped = [p for group in parameter_groups(model, 2.0, 3.0) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_loss_that_is_not_finite_stops_and_names_the_pictures():
    model = micro()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    broken = batch(image=torch.full((4, 3, 96, 96), float("nan")))
    with pytest.raises(UserError, match=r"loss is nan at step 10, pictures picture0, .*picture3"):
        epoch(model, [broken], 0.01)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_broken_by_the_last_step_are_seen():
    with pytest.raises(UserError, match=r"weights are not finite after step 10 .*picture0"):
        epoch(micro(), [batch()], float("inf"))


def test_validation_scores_all_three_logits():
    model = micro()
    found = validate(model, [batch(0), batch(1)], torch.device("cpu"))
    model.eval()
    truth = LABELS.repeat(2, 1).numpy()
    with torch.no_grad():
        outputs = [model(batch(seed)["image"]) for seed in (0, 1)]
    for i, name in enumerate(("class", "coarse", "fine")):
        scores = torch.cat([output[i] for output in outputs]).numpy()
        by_picture = np.mean([average_precision_score(t, s) for t, s in zip(truth, scores, strict=True)])
        by_class = np.mean([average_precision_score(truth[:, c], scores[:, c]) for c in range(3)])
        assert found[f"sample_map_{name}"] == pytest.approx(by_picture)
        assert found[f"class_map_{name}"] == pytest.approx(by_class)
