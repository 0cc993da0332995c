"""Labelers whose model `ray.data.llm` runs: pictures to ask about go through its vLLM actors as rows of Ray Data.

parts of shards ─▶ read, decode, write requests ─▶ ray.data.llm: template, vLLM ─▶ collect parts ─▶ the shard's writer

vLLM wants another torch than this project. Its actors may run the Python of another environment (`Resources.python`);
what is read and written here does not.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from labeling.dataset import Dataset
from labeling.labeler import Labeler, LanguageModel
from labeling.networks.endpoint import Answer
from labeling.resources import Resources
from labeling.supervision.task_attempt import Attempt
from model.inputs import InputError, one_line
from pipelines.labeling_job.label_process import WRITING, LabelProcess
from pipelines.labeling_job.part_labeler import PartLabeler, Step
from pipelines.labeling_job.parts import Part, pack, unpack
from pipelines.labeling_job.row_group import Outputs
from pipelines.labeling_job.tally import Tally

BATCH = 32  # rows that go to an engine together; it takes the next ones before it has done these
_ERROR = "__inference_error__"  # the column in which ray.data.llm has what went wrong with a row, "" for nothing
_SMALL = 0.25  # CPUs of a process that mostly hands on what others make
_LONGEST_REASON = 300  # characters


def check_engines(labelers: Mapping[str, Labeler], resources: Mapping[str, Resources]) -> None:
    """Raise InputError where vLLM is neither in this environment nor in one that the resources name."""
    for group, labeler in labelers.items():
        own = resources[group]
        if labeler.language_model is None:
            if own.python is not None:
                raise InputError(f"{group}.python: no model of {group} runs in another environment; set engine vllm")
            continue
        if own.gpus is not None and own.gpus % 1:
            raise InputError(f"{group}.gpus: {own.gpus:g}; vLLM takes whole GPUs, over which it parts the model")
        if own.python is None and find_spec("vllm") is None:
            raise InputError(
                f"{group}: vllm is not installed, since it does not fit beside this project's torch; name the Python "
                f"of an environment with vllm and this Ray (--resources {group}.python=/PATH/bin/python), or serve "
                f"the model with `vllm serve` and set {group}.endpoint"
            )


def processor_config(
    model: LanguageModel, group: str, resources: Resources, gpus: float, may_grow: bool = True
) -> dict[str, Any]:
    """Arguments of `ray.data.llm.vLLMEngineProcessorConfig`. gpus: of the cluster; may_grow: whether nodes can join.

    A model is parted over the GPUs of a process; there are as many processes as GPUs allow, unless they are given. With
    0 GPUs the engine is that of vLLM for CPUs.
    Raises InputError for more GPUs than there can be: Ray would wait for them without a word.
    """
    each = 1 if resources.gpus is None else int(resources.gpus)
    if each > gpus and not may_grow:
        raise InputError(
            f"{group}: {each} GPUs for vLLM, and the cluster has {gpus:g}; give less (--resources {group}.gpus=0 for "
            "vLLM's build for CPUs)"
        )
    engine = {"tensor_parallel_size": max(1, each), **model.engine}
    processes = resources.processes or (1, max(1, int(gpus // max(1, each))))
    elsewhere = {"py_executable": resources.python} if resources.python else None
    small = {"num_cpus": _SMALL, "concurrency": 1}
    return {
        "model_source": model.source,
        "engine_kwargs": engine,
        "batch_size": resources.batch or BATCH,
        "concurrency": processes,
        "runtime_env": elsewhere,
        "should_continue_on_error": True,  # a row's error is the row's
        "log_engine_metrics": False,
        "prepare_multimodal_stage": {"enabled": True, "chat_template_content_format": "openai", **small},
        "chat_template_stage": {"enabled": True, **small},
        "tokenize_stage": {"enabled": False},  # the engine does both, and knows where the picture goes
        "detokenize_stage": {"enabled": False},
        **({"placement_group_config": {"bundles": [{"CPU": resources.cpus}]}} if each == 0 else {}),
    }


def ask(tables: Sequence[Any], process: tuple[Any, ...], processes: int, config: Mapping[str, Any]) -> Generator[Tally]:
    """The Ray Data job: the tally of each part as it is done.

    tables: blocks of parts; process: arguments of LabelProcess; processes: that write requests.
    """
    import ray.data
    from ray.data import ActorPoolStrategy
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    requests = ray.data.from_blocks(list(tables)).map_batches(
        Asking,
        fn_constructor_args=process,
        batch_size=None,
        compute=ActorPoolStrategy(min_size=1, max_size=min(processes, len(tables))),
        num_cpus=process[3].cpus,
    )
    answers = build_processor(
        vLLMEngineProcessorConfig(**config),
        preprocess=_as_messages,
        postprocess=_as_answer,
        preprocess_map_kwargs={"num_cpus": _SMALL},
        postprocess_map_kwargs={"num_cpus": _SMALL},
    )(requests)
    # One process, since rows of a part come together in it.
    done = answers.map_batches(
        Answering,
        fn_constructor_args=process,
        batch_size=None,
        compute=ActorPoolStrategy(size=1),
        num_cpus=_SMALL,
    )
    for row in done.iter_rows():
        yield Tally.from_plain(json.loads(row["tally"]))


class RequestWriter(PartLabeler):
    """Writes requests for parts, and keeps nothing of them: the answers go to another process."""

    def __call__(self, task: tuple[Part, Outputs, Part | None], attempt: Attempt) -> Step:
        step = super().__call__(task, attempt)
        self.pending.clear()
        return step


class Asking(LabelProcess):
    """Gives a row for each picture of parts that the model is to be asked about, and one for a part without any."""

    child_work = RequestWriter

    def __init__(self, dataset: Dataset, labelers: Mapping[str, Labeler], *arguments: Any) -> None:
        super().__init__(dataset, labelers, *arguments)
        (labeler,) = labelers.values()
        pixel = {"id": "", "images.image": np.zeros((1, 1, 3), np.uint8)}
        # A row without numbers beside others would make all of theirs floats, on the way from stage to stage.
        self.filler = json.dumps(labeler.prepare(pixel).inputs)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        for part in [part for packed in batch["parts"] for part in unpack(packed)]:
            (group,) = part.groups
            step = self.step(part, {}, None, Tally())
            inputs = step.requests.get(group, {})
            requests = {row: json.dumps(pickle.loads(data)) for row, data in inputs.items()}  # noqa: S301 (our own)
            error = "" if requests else "nothing to ask"
            requests = requests or {"": self.filler}
            count = len(requests)
            yield {
                "part": [pack([part])] * count,
                "rows": [0 if error else count] * count,
                "row": list(requests),
                "request": list(requests.values()),
                _ERROR: [error] * count,
            }


class Answering(LabelProcess):
    """Collects the answers of parts, and sends the labels of each whole part to the shard's writer.

    What it has collected is lost with it: those shards come with the next wave.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: dict[bytes, dict[str, Answer]] = {}  # part → row id → answer, of parts that are not whole

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        # Rows in error come without the column of answers.
        columns = [list(batch.get(name, batch["part"])) for name in ("part", "rows", "row", "answer", _ERROR)]
        for packed, rows, row, text, error in zip(*columns, strict=True):
            answers = self.answers.setdefault(bytes(packed), {})
            if rows:
                reason = one_line(error, _LONGEST_REASON) if error else ""
                answers[str(row)] = Answer(text="" if error else str(text), error=reason, is_row=bool(error))
            if len(answers) == rows:
                del self.answers[bytes(packed)]
                yield {"tally": [json.dumps(self._label_part(bytes(packed), answers).to_plain())]}

    def _label_part(self, packed: bytes, answers: Mapping[str, Answer]) -> Tally:
        (part,) = unpack(packed)
        (group,) = part.groups
        tally = Tally()
        step = self.step(part, {group: {row: pickle.dumps(one) for row, one in answers.items()}}, None, tally)
        with tally.timed(WRITING):
            self.send(part, step.tables)
        return tally


def _as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """What vLLM's stages take, of a request of OpenAI's chat completions."""
    request = json.loads(row["request"])
    sampling = {key: value for key, value in request.items() if key not in ("model", "messages")}
    return {"messages": request["messages"], "sampling_params": sampling, "request": ""}


def _as_answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"part": row["part"], "rows": row["rows"], "row": row["row"], "answer": row["generated_text"]}
