"""What a run would cost on a cluster, by arithmetic: memory of a GPU by part, seconds a step, a checkpoint, dollars.

It counts FLOP, bytes and links, and takes from measurements (docs/gpu.md) only what shares of a GPU's peak a step, a
text encoder and an autoencoder reach. It knows nothing of stragglers, of a store that is too slow to feed the run, nor
of failures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from model.constants import LATENT_CHANNELS, LATENT_FACTOR, PATCH_SIZE
from model.inputs import InputError
from model.prompts import DEGRADED, RAYS, find_task
from training.config import TrainingConfig
from training.flops import FlopCounter, SampleSize, known_peak_flops
from training.lora import adapter_size
from training.source_config import SourceConfig

if TYPE_CHECKING:
    from model.transformer import NextDiT

MEASURED_MFU = 0.28  # of the published model with compiled, checkpointed blocks on one H100 (docs/gpu.md)
TEXT_TOKENS = 300  # the most that a prompt has (docs/paper.md)
_WEIGHT, _GRADIENT, _ADAM, _AVERAGE, _COMPUTE = 4, 4, 8, 4, 2  # bytes for each weight; compute: in bf16
_HOST_GBYTES = 25.0  # a second, from a GPU to pinned memory of its host (PCIe 4 × 16)
_STORED = 2  # bytes of a number of stored latents and text
_LETTERS = 4  # bytes of a token of a caption that is embedded when it is used
_JPEG, _LABEL = 300e3, 50e3  # bytes of a picture of a megapixel, and of a label of one, which are encoded when used
# Encoders of a run that makes latents or embeddings itself. T5: 24 layers of 11.5 D² weights (attention of width D,
# gated SwiGLU of 2.5 D), D being caption_channels, in bf16. The published VAE: FLOP of its encoder for a pixel; its
# weights in float32, and what it keeps of the pixels of a batch.
_T5_LAYERS, _T5_WORDS, _T5_MFU = 24 * 11.5, 32128, 0.26
_VAE_FLOP, _VAE_BYTES, _VAE_MFU = 4.1e6, 1.0e9, 0.11
_GATHERED_BLOCKS = 2  # the one that is computed, and the next, which is fetched meanwhile
DCT = "dct"  # the codec that takes no time; `model.codecs` imports torch
Sharding = Literal["none", "node", "all"]


@dataclass(frozen=True)
class ClusterSpec:
    """Machines to compute on.

    per_node: GPUs of a node; gbps, node_gbps: gigabits a second that a GPU sends to other nodes, and within its node;
    store_gbytes: gigabytes a second that a node reads, and writes checkpoints at; mfu: share of the peak that computing
    reaches where blocks are computed again in the backward pass; dollars: for a GPU and hour, None where that is
    unknown. sharding: over the GPUs of a node with a copy in each, over all of them, or not at all.
    """

    gpus: int
    device: str = "H100"
    memory_gb: float = 80.0
    per_node: int = 8
    gbps: float = 400.0
    node_gbps: float = 3600.0
    store_gbytes: float = 1.0
    mfu: float = MEASURED_MFU
    dollars: float | None = None
    sharding: Sharding = "all"

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the weights."""
        return {"none": 1, "node": min(self.per_node, self.gpus), "all": self.gpus}[self.sharding]


@dataclass(frozen=True)
class Cost:
    """parameters: weights of the model; trained: those that change, of an adapter where there is one.

    memory: part → bytes on each GPU at the end of the backward pass, when it is at its most.

    tokens: image tokens of a step; passes: forward and backward passes of each GPU in a step; sent: bytes that each GPU
    sends in a step, to others; read: bytes of stored latents and text of its samples, which each GPU's worker reads for
    a step; compute, communication: seconds of a step if it were all; encode: of those of compute, what encoding
    pictures and prompts takes that are not stored so; step: seconds of a step; checkpoint: seconds to write one, beside
    the steps; checkpoint_bytes: of all of it; checkpoint_host_bytes: on each node, of the copies that are written;
    checkpoint_stall: seconds that steps wait for each. hours, dollars: of the whole run.
    """

    parameters: int
    trained: int
    memory: dict[str, float]
    tokens: float
    passes: int
    flops: float
    sent: float
    read: float
    compute: float
    communication: float
    encode: float
    step: float
    mfu: float
    checkpoint: float
    checkpoint_bytes: float
    checkpoint_host_bytes: float
    checkpoint_stall: float
    hours: float
    dollars: float | None


def configured_sharding(config: TrainingConfig) -> Sharding:
    """As the run would share its weights."""
    return config.workers.shard if config.workers.fsdp else "none"


def run_cost(config: TrainingConfig, cluster: ClusterSpec) -> Cost:
    """What a run of `config` costs on `cluster`.

    Raises InputError for fewer samples than GPUs, and for a device without a known peak.
    """
    if config.batch < cluster.gpus:
        raise InputError(f"batch {config.batch} leaves some of {cluster.gpus} GPUs without a sample; raise `batch`")
    peak = known_peak_flops(cluster.device)
    model, parameters, block = _sizes(config)
    trained = adapter_size(model, config.lora) if config.lora else parameters
    sizes = _mean_samples(config)
    tokens = config.batch * sum(share * size.tokens for share, size in sizes)
    per_gpu = tokens / cluster.gpus
    longest = max(size.tokens for _, size in sizes)
    passes = max(1, -(-int(per_gpu) // config.workers.pack_tokens))
    counter = FlopCounter(model, frozen=config.lora is not None)
    flops = config.batch * sum(share * counter.step([size]) for share, size in sizes)
    encode = _encoding_seconds(config, peak) / cluster.gpus
    computed = config.batch * _computed(model, config, sizes)
    compute = computed / (cluster.gpus * peak * cluster.mfu) + encode
    inside, outside = _bytes_sent(parameters, trained, passes, cluster)
    communication = inside * 8e-9 / cluster.node_gbps + outside * 8e-9 / cluster.gbps
    # Blocks are fetched and gradients sent while others are computed, except for the first and the last of a pass.
    step = max(compute, communication) + min(compute, communication) / config.model.depth
    state = trained * (_WEIGHT + _adam(config) + _AVERAGE)
    # All processes write, also where several have the same shard: each part is written once.
    nodes = -(-cluster.gpus // cluster.per_node)
    checkpoint = state / (nodes * cluster.store_gbytes * 1e9)
    # Copying takes place beside the next step, writing beside those until the next checkpoint.
    copying = state / cluster.shards / (_HOST_GBYTES * 1e9)
    stall = max(0.0, copying - step) + max(0.0, checkpoint - config.checkpoints.every * step)
    hours = (config.steps * step + config.steps / config.checkpoints.every * stall) / 3600
    return Cost(
        parameters=parameters,
        trained=trained,
        memory=_memory(config, cluster, (parameters, trained, block), max(longest, per_gpu / passes)),
        tokens=tokens,
        passes=passes,
        flops=flops,
        sent=inside + outside,
        read=config.batch / cluster.gpus * _bytes_of_sample(config),
        compute=compute,
        communication=communication,
        encode=encode,
        step=step,
        mfu=flops / (step * cluster.gpus * peak),
        checkpoint=checkpoint,
        checkpoint_bytes=state,
        checkpoint_host_bytes=min(cluster.per_node, cluster.gpus) * state / cluster.shards,
        checkpoint_stall=stall,
        hours=hours,
        dollars=None if cluster.dollars is None else hours * cluster.gpus * cluster.dollars,
    )


def meta_model(config: TrainingConfig) -> NextDiT:
    """The model without memory for its weights."""
    import torch

    from model.transformer import NextDiT

    with torch.device("meta"):
        return NextDiT(**config.model.model_dump())


def _sizes(config: TrainingConfig) -> tuple[NextDiT, int, int]:
    """The model without memory for its weights, its number of weights, and that of a block."""
    model = meta_model(config)
    block = sum(parameter.numel() for parameter in model.layers[0].parameters())
    return model, sum(parameter.numel() for parameter in model.parameters()), block


def _mean_samples(config: TrainingConfig) -> list[tuple[float, SampleSize]]:
    """(share of the samples, size) of each task of the mixture."""
    return [(share, SampleSize(tokens, TEXT_TOKENS, frames)) for share, frames, tokens in config.mean_sizes()]


def _computed(model: NextDiT, config: TrainingConfig, sizes: list[tuple[float, SampleSize]]) -> float:
    """FLOP of a sample, in such as the measured share is of: those of steps that train all weights and recompute their
    blocks, where what is recomputed does not count."""

    def of_sample(frozen: bool, recomputed: bool) -> float:
        counter = FlopCounter(model, frozen)
        return sum(share * counter.step([size], recomputed) for share, size in sizes)

    done = of_sample(config.lora is not None, config.workers.gradient_checkpointing)
    return done * of_sample(False, False) / of_sample(False, True)


def _bytes_of_sample(config: TrainingConfig) -> float:
    """Mean bytes of a sample as it is stored: what is computed while it is read is left out."""
    total = 0.0
    for share, size, name, source in _tasks(config):
        condition = find_task(name).condition
        is_computed = condition == RAYS or (condition == DEGRADED and source.degraded == "online")
        computed = 0.5 if is_computed else 0.0  # every other frame
        frames = _STORED * size.tokens * PATCH_SIZE**2 * LATENT_CHANNELS * (1 - computed)
        if source.latents == "online":
            frames = _JPEG * (size.frames / 2 if condition == RAYS else 1)
            frames += _LABEL * (find_task(name).label is not None)
        of_token = _LETTERS if source.text == "online" else _STORED * config.model.caption_channels
        total += share * (frames + size.text * of_token)
    return total


def _adam(config: TrainingConfig) -> float:
    """Bytes of the optimizer's state for each weight."""
    if config.optimizer.kind == "adamw":
        return _ADAM
    from training.adamw8bit import BLOCK  # it imports torch

    return 2 * (1 + 4 / BLOCK)


def _encoding_seconds(config: TrainingConfig, peak: float) -> float:
    """Of one GPU, for the pictures and prompts of a step that are encoded by the workers."""
    seconds = 0.0
    for share, size, name, source in _tasks(config):
        condition = find_task(name).condition
        pictures = size.frames * (0.5 if condition == RAYS else 1)
        if source.latents == "stored":
            pictures = 1 if condition == DEGRADED else 0
        pixels = pictures * size.tokens / size.frames * (PATCH_SIZE * LATENT_FACTOR) ** 2
        if config.codec != DCT:
            seconds += share * pixels * _VAE_FLOP / _VAE_MFU
        if source.text == "online":
            seconds += share * size.text * 2 * _T5_LAYERS * config.model.caption_channels**2 / _T5_MFU
    return config.batch * seconds / peak


def _tasks(config: TrainingConfig) -> list[tuple[float, SampleSize, str, SourceConfig]]:
    """(share of the samples, size, name, source) of each task of the mixture."""
    tasks = [(name, source) for source in config.mixture.values() for name in source.tasks]
    return [(*sized, *task) for sized, task in zip(_mean_samples(config), tasks, strict=True)]


def _bytes_sent(parameters: int, trained: int, passes: int, cluster: ClusterSpec) -> tuple[float, float]:
    """Bytes that each GPU sends in a step (within its node, to other nodes), by rings of all that take part.

    Sharded weights are gathered in bf16 for each forward and each backward pass, and their gradients scattered in
    float32 after it; copies of a shard add up their gradients once a step.
    """
    shards, copies = cluster.shards, cluster.gpus // cluster.shards
    sharded = passes * (2 * parameters * _COMPUTE + trained * _GRADIENT) * (shards - 1) / shards
    added = 2 * trained * _GRADIENT / shards * (copies - 1) / copies
    one_node = cluster.gpus <= cluster.per_node
    inside = (sharded if shards <= cluster.per_node else 0.0) + (added if one_node else 0.0)
    return inside, sharded + added - inside


def _memory(
    config: TrainingConfig, cluster: ClusterSpec, weights: tuple[int, int, int], tokens: float
) -> dict[str, float]:
    """Bytes on each GPU by part; weights: of the model, those trained, of a block; tokens: of a pass."""
    parameters, trained, block = weights
    # Frozen weights are held in what they compute in. Those that are not of linear layers are a few in 10,000.
    frozen = _COMPUTE if config.workers.precision == "bf16" else _WEIGHT
    held = parameters * frozen + trained * _WEIGHT if config.lora else parameters * _WEIGHT
    width, depth, shards = config.model.hidden_size, config.model.depth, cluster.shards
    hidden = 8 * width / 3
    # What a block keeps for its backward pass, in bf16: its norms, queries, keys and outputs, and SwiGLU's four parts.
    within = tokens * _COMPUTE * (8 * width + 4 * hidden)
    kept = tokens * _COMPUTE * width * depth if config.workers.gradient_checkpointing else (depth - 1) * within
    parts = {
        "weights": held / shards,
        "gradients": trained * _GRADIENT / shards,
        "optimizer": trained * _adam(config) / shards,
        "average": trained * _AVERAGE / shards,
        "activations": within + kept,
    }
    width, sources = config.model.caption_channels, config.mixture.values()
    if any(source.text == "online" for source in sources):
        parts["text encoder"] = _COMPUTE * (_T5_LAYERS * width**2 + _T5_WORDS * width)
    degraded = any(find_task(name).condition == DEGRADED for source in sources for name in source.tasks)
    if config.codec != DCT and (degraded or any(source.latents == "online" for source in sources)):
        parts["autoencoder"] = _VAE_BYTES
    if shards > 1:
        parts["gathered blocks"] = block * (_GATHERED_BLOCKS * _COMPUTE + _GRADIENT)
    return parts
