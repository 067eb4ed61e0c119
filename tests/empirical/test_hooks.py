"""Trackers in the loops of Lightning and transformers, and on TensorBoard and W&B, with these packages themselves."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finwidth
from finwidth.errors import FinwidthError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from finwidth.empirical import (  # noqa: E402
    Tracker,
    lightning_callback,
    tensorboard_log,
    trainer_callback,
    wandb_log,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
X = torch.tensor(np.random.default_rng(3).normal(size=(20, 3)), dtype=torch.float32)
Y = torch.sin(X[:, 0])


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def by_hand(accumulate: int, epochs: int) -> Any:
    """The same training, tracked by its own loop."""
    module = network()
    optimizer, tracker = torch.optim.SGD(module.parameters(), 0.1), Tracker(module, X[:6], Y[:6], record=1)
    for _ in range(epochs):
        for start in range(0, 20, 5 * accumulate):
            optimizer.zero_grad()
            for some in range(start, start + 5 * accumulate, 5):
                loss = (module(X[some : some + 5])[:, 0] - Y[some : some + 5]).square().mean() / accumulate
                loss.backward()
            optimizer.step()
            tracker.step(loss)
    return tracker.dataset()


def fitted(callback: Any, accumulate: int = 1, epochs: int = 1) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Regression(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Any) -> Any:
            return self.network(x)

        def training_step(self, batch: Any, number: int) -> Any:
            return (self(batch[0])[:, 0] - batch[1]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", accumulate_grad_batches=accumulate, **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Regression(), DataLoader(TensorDataset(X, Y), batch_size=5))


@pytest.mark.parametrize(("accumulate", "epochs"), [(1, 1), (2, 2)])
def test_lightning(accumulate: int, epochs: int, tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    callback = lightning_callback(TensorDataset(X[:6], Y[:6]), record=1, path=tmp_path / "run.nc")
    with pytest.raises(FinwidthError, match="train first"):
        callback.dataset()
    fitted(callback, accumulate, epochs)
    found, right = callback.dataset(), by_hand(accumulate, epochs)
    assert found.step.to_numpy().tolist() == [0, 1, 2, 3, 4]
    for name in ("drift", "eigenvalues", "alignment", "loss"):
        assert np.allclose(found[name], right[name], rtol=1e-4, atol=1e-6, equal_nan=True), name
    assert callback.tracker is not None
    assert (tmp_path / "run.nc").exists()


def test_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = tensorboard.SummaryWriter(tmp_path)
    module, tracker = network(), None
    tracker = Tracker(module, X[:6], Y[:6], record=1, log=tensorboard_log(writer, "kernel"))
    tracker.step(0.5)
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert "kernel/drift" in events.Tags()["scalars"]
    assert [(each.step, each.value) for each in events.Scalars("kernel/loss")] == [(1, 0.5)]  # step 0 has none
    assert [each.step for each in events.Scalars("kernel/trace")] == [0, 1]


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path))
    run.log({"mine": 1.0}, step=100)  # whose steps are not those of the tracker
    tracker = Tracker(network(), X[:6], record=1, log=wandb_log(run))
    tracker.step(0.25)
    assert run.summary["ntk/step"] == 1
    assert run.summary["ntk/loss"] == 0.25
    assert run.summary["ntk/trace"] == pytest.approx(float(tracker.dataset().trace[-1]))
    run.finish()


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    bert = pytest.importorskip("transformers.models.bert.modeling_bert")
    torch.manual_seed(5)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, num_labels=2, **sizes)
    model = bert.BertForSequenceClassification(config)
    words, labels = torch.randint(20, (12, 6)), torch.randint(2, (12,))
    data = [{"input_ids": word, "labels": label} for word, label in zip(words, labels, strict=True)]
    probe = transformers.BatchEncoding({"input_ids": words[:4], "attention_mask": torch.ones(4, 6, dtype=torch.long)})
    callback = trainer_callback(probe, labels[:4], record=1)
    options = {"per_device_train_batch_size": 4, "max_steps": 3, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    given = transformers.TrainingArguments(str(tmp_path), save_strategy="no", **options)
    transformers.Trainer(model, given, train_dataset=data, callbacks=[callback]).train()
    found = callback.dataset()
    assert found.step.to_numpy().tolist() == [0, 1, 2, 3]
    assert found.attrs["targets_are"] == "classes"
    assert (found.drift[1:] > 0).all()
    K = finwidth.empirical.ntk(model.eval(), probe, outputs="trace")
    assert np.allclose(found.diagonal[-1], K.diagonal(), rtol=1e-4)


@pytest.mark.parametrize(("make", "package"), [(lightning_callback, "lightning"), (trainer_callback, "transformers")])
def test_a_missing_package_is_told(make: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FinwidthError, match=f"needs {package}, which is not installed; pip install {package}"):
        make(X)


class Recorder:
    """A writer and a run, as the documented signatures of TensorBoard and W&B are."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        self.told.append((tag, global_step))

    def log(self, data: dict[str, float], step: int | None = None, commit: bool | None = None) -> None:
        self.told.append(data)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.told.append((name, step_metric))


def test_logs() -> None:
    writer, run = Recorder(), Recorder()
    Tracker(network(), X[:6], record=1, log=tensorboard_log(writer)).step(1.0)
    assert ("ntk/drift", 0) in writer.told
    assert ("ntk/loss", 1) in writer.told
    assert ("ntk/loss", 0) not in writer.told
    Tracker(network(), X[:6], record=1, log=wandb_log(run, "k")).step(1.0)
    assert run.told[:2] == [("k/step", None), ("k/*", "k/step")]
    assert [each["k/step"] for each in run.told[2:]] == [0, 1]
    tracker = Tracker(network(), X[:6], record=[0], log=wandb_log(run))
    run.told.clear()
    tracker.dataset()
    assert run.told == []


def test_mistakes_are_told() -> None:
    for make, wrong in (
        (tensorboard_log, "cannot add_scalar; give a SummaryWriter"),
        (wandb_log, "cannot log; give what"),
    ):
        with pytest.raises(FinwidthError, match=wrong):
            make(3)
        with pytest.raises(FinwidthError, match="prefix is 3"):
            make(Recorder(), 3)  # type: ignore[arg-type]
    with pytest.raises(FinwidthError, match="log is 3"):
        Tracker(network(), X, log=3)  # type: ignore[arg-type]
    with pytest.raises(FinwidthError, match="log= raises ZeroDivisionError"):
        Tracker(network(), X, log=lambda step, values: 1 / 0)
