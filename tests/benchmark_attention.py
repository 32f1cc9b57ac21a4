"""Time and memory of CAMs and of a training step, with and without N x N attention matrices. Not a test.

Last come forward and backward of one block's attention in bfloat16: the fused kernel, and wsss.vit.attend.

    python -m tests.benchmark_attention [--backbone deit_small_patch16_224] [--threads 2]

Each case runs in a process of its own; memory is the peak above the process with the network built, idle.
Prints the figures and the ratios plain / ours.
"""

import argparse
import multiprocessing
import resource
import time

import torch
import torch.nn.functional as F

from tests.weaktr.oracle import plain_forward
from weaktr.model import build_weaktr, weaktr_loss
from wsss.vit import attend

REPEATS = 3


def measure(case: str, backbone: str, threads: int, queue) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plain, training = case.startswith("plain"), case.endswith("step")
    model = build_weaktr(backbone, num_classes=20).train(training)
    images = torch.randn((32, 3, 224, 224) if training else (2, 3, 450, 600))
    targets = torch.ones(32, 20)

    def run():
        if not training:
            with torch.no_grad():
                return plain_forward(model, images) if plain else model.cams(images, class_ids=[3, 7])
        if plain:
            found = plain_forward(model, images)
            logits = [found[f"{name}_logits"] for name in ("class", "coarse", "fine")]
            loss = F.multilabel_soft_margin_loss
            sum(loss(z, targets) for z in logits).backward()
        else:
            weaktr_loss(model(images), targets)["loss"].backward()
        return None

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    queue.put((min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) / 1024))


def bfloat16_attention(shape: tuple[int, ...], threads: int) -> None:
    """Print times of queries, keys and values of ``shape`` (B, H, N, d)."""
    torch.set_num_threads(threads)
    least = {}
    for name, function in (("fused", F.scaled_dot_product_attention), ("attend", attend)):
        seconds = []
        for _ in range(10):
            tensors = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
            start = time.perf_counter()
            output = function(*tensors, 0.0) if name == "attend" else function(*tensors)
            output.float().square().sum().backward()
            seconds.append(time.perf_counter() - start)
        least[name] = min(seconds)
    ratio = least["fused"] / least["attend"]
    fused, plain = (1e3 * least[name] for name in ("fused", "attend"))
    print(f"bfloat16 {shape}: {fused:.1f} and {plain:.1f} ms, fused / attend {ratio:.1f}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="deit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print(f"{options.backbone}, {options.threads} threads; 450x600 with mirror, and 32 pictures of 224x224")  # noqa: T201
    for what in ("cams", "step"):
        found = {}
        for who in ("plain", "ours"):
            queue = context.Queue()
            arguments = (f"{who} {what}", options.backbone, options.threads, queue)
            process = context.Process(target=measure, args=arguments)
            process.start()
            found[who] = queue.get()
            process.join()
            print(f"{who:5} {what}: {found[who][0]:6.2f} s, {found[who][1]:7.0f} MiB")  # noqa: T201
        time_ratio, memory_ratio = (a / b for a, b in zip(found["plain"], found["ours"], strict=True))
        print(f"plain / ours {what}: time {time_ratio:.2f}, memory {memory_ratio:.2f}")  # noqa: T201
    for shape in ((32, 3, 145, 32), (8, 3, 197, 64)):
        bfloat16_attention(shape, options.threads)


if __name__ == "__main__":
    main()
