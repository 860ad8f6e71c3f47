"""Where an encoder is cheaper than a search: one posing of all particles against one map, by several ways.

    OMP_NUM_THREADS=1 python tests/benchmarks/crossing.py --work DIR --boxes 32,64,96,128
    python tests/benchmarks/crossing.py --work DIR --no-runs --table FILE       the tables of what is recorded

Particles of 1WCM, SNR 0.1, shifts of 5 % of the box, against their true map, nothing known of their poses. The ways:

exhaustive    all poses and all shifts, at once up to the last shell below Nyquist, then local refinement there. The
              views are as close as ``cryoeq reconstruct`` has them at shell 10 (2.6 shells of turn between neighbours),
              so their HEALPix order is log2(0.4 radius), rounded up; trial shifts lie in a disk of 3 sigma. It is timed
              on a few images and trial shifts, time being proportional to both; its errors are not measured.
shift known   the same with the right shift alone.
search        what the product does: all poses and all shifts up to shell 10, local refinement, all poses up to shell
              15 at the shift found, then local refinement in steps to the last shell. A run does so several times.
encoder       an encoder is taught by renderings up to shell 10, as in ``--pose-inference hybrid``; a forward pass; its
              hypotheses are judged by their likelihood, the best four of each image refined; then local refinement as
              above. No copies by the group are added: proposals of a D4-equivariant net would only be repeated.
encoder + search   the same; images whose proposals cannot be trusted are searched as above.
true poses    local refinement from the truth: what no way can do better than.

Steps up to shell 15 see images and map at 32 px, whatever the box; so in them the box changes only what the images
hold: the same SNR over the whole box means more signal per coefficient in a larger one. The noise of each box is that
of another simulation. Times are CPU seconds of one thread. An exhaustive search beyond radius 31 is extrapolated from
radius 31: its work per pair of image and shift goes as views times radius squared. Records are appended to
``crossing.json``; a box recorded there is not done again.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from ab_initio import listed, markdown_table
from benchmark_sets import DATA, Simulated, prepare
from pose_ways import Step, compare, open_scene, timed
from recorded_runs import Cost, Record, append_record, cost_record, find_record, read_records

from cryoeq.config.hybrid import HybridConfig
from cryoeq.config.reconstruct import ReconstructConfig
from cryoeq.io.text import write_text
from cryoeq.pipelines.reconstruct.hybrid import SHIFTED_STEPS

RESULTS = Path(__file__).with_suffix(".json")
BOXES_PX = (32, 64, 96, 128)
COUNT, MOST = 300, 20_000


def run_key(box_px: int, steps: int) -> Record:
    """What a record is known by: the box, and how long the encoder is trained."""
    options = [] if steps == SHIFTED_STEPS else [f"hybrid.training_steps={steps}"]
    return {"set": f"crossing{box_px}", "mode": "crossing", "seed": 0, "options": options}


def run_box(work: Path, records: Path, box_px: int, steps: int) -> None:
    """Compare and record, unless it was done before.

    Args:
        work: folder of sets.
        records: the JSON file.
        box_px: side of the images.
        steps: training steps of the encoder.
    """
    key = run_key(box_px, steps)
    if find_record(read_records(records), key) is not None:
        return
    folder = prepare(name := key["set"], work, Simulated(box_px=box_px, count=COUNT))
    config = ReconstructConfig(
        particles=folder / "particles.star",
        output=work / "none",
        pose_inference="hybrid",
        hybrid=HybridConfig(head="regression", training_steps=steps),
    )
    wall = time.perf_counter()
    cpu_s, found = timed(lambda: compare(*open_scene(folder, config), config))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cost = Cost(round(time.perf_counter() - wall, 2), round(cpu_s, 2), round(peak_mib, 1))
    words = ["--work", str(work), "--boxes", str(box_px), "--steps", str(steps)]
    command = ["python", "tests/benchmarks/crossing.py", *words]
    append_record(records, {**key, **cost_record(cost, [command], {"DIR": work, "DATA": DATA}), **found})
    print(f"{name}: {cost.cpu_s} s of CPU time", flush=True)


def way_costs(record: Record) -> dict[str, Step]:
    """Cost of posing all images once, by each way.

    Args:
        record: of a box.
    """
    steps = {name: Step(**step) for name, step in record["steps"].items()}
    local, whole = steps["local refinement"], steps["exhaustive"]
    searching = steps["all poses and shifts, shell 10"] + steps["all poses, shell 15"]
    proposing = steps["teaching"] + steps["forward pass"] + steps["judging"]
    again = Step(searching.fixed_s, record["doubtful_share"] * searching.image_s)
    return {
        "exhaustive": whole + local,
        "shift known": Step(whole.fixed_s, whole.image_s / record["exhaustive"]["shifts"]) + local,
        "search": searching + local,
        "encoder": proposing + local,
        "encoder + search": proposing + again + local,
    }


def crossing(one: Step, other: Step) -> str:
    """From how many images on the first is cheaper than the other."""
    if one.image_s >= other.image_s:
        return "never"
    return f"{max(0.0, (one.fixed_s - other.fixed_s) / (other.image_s - one.image_s)):,.0f}"


def way_rows(record: Record) -> list[list[str]]:
    """Cells of one row per way: cost, errors.

    Args:
        record: of a box.
    """
    costs, rows = way_costs(record), []
    for name in (*costs, "true poses"):
        found, trusted = record["errors"].get(name), record["errors_trusted"].get(name)
        cells = ["–"] * 4
        if step := costs.get(name):
            cells = [f"{step.fixed_s:.1f}", f"{1000 * step.image_s:.1f}", *(f"{step.at(n):,.0f}" for n in (2000, MOST))]
        figures = ["–"] * 3
        if found and trusted:
            figures = [
                f"{found['median_deg']:.2f}° {found['mean_deg']:.1f}°", f"{100 * found['share_beyond_30']:.0f} %",
                f"{trusted['median_deg']:.2f}° {trusted['mean_deg']:.1f}°",
            ]  # fmt: skip
        box = record["set"].removeprefix("crossing")
        star = "*" if name in {"exhaustive", "shift known"} and record["exhaustive"]["extrapolated_from_radius"] else ""
        rows.append([box, name + star, *cells, *figures])
    return rows


def crossing_row(record: Record) -> list[str]:
    """Cells of one box: what the ways cost beside each other.

    Args:
        record: of the box.
    """
    costs, local = way_costs(record), record["steps"]["local refinement"]["image_s"]
    encoder, both, search = (costs[name] for name in ("encoder", "encoder + search", "search"))
    return [
        record["set"].removeprefix("crossing"),
        *(f"{(search.image_s - local) / (way.image_s - local):.1f}" for way in (encoder, both)),
        *(crossing(both, costs[name]) for name in ("search", "shift known", "exhaustive")),
        *(f"{costs[name].at(MOST) / both.at(MOST):,.1f}" for name in ("search", "shift known", "exhaustive")),
        f"{100 * record['doubtful_share']:.0f} %", f"{record['forward_pass']['median_deg']:.1f}°",
    ]  # fmt: skip


def tables(records: Sequence[Record]) -> str:
    """Costs and errors of the ways, and where they cross.

    Args:
        records: the latest of each box, in order.
    """
    ways = [
        "box px", "way", "once, s", "per image, ms", "2,000 images, s", f"{MOST:,} images, s",
        "error: median, mean", "beyond 30°", "of trusted images",
    ]  # fmt: skip
    others = ("search", "exhaustive, shift known", "exhaustive")
    crossings = [
        "box px", "per image before local refinement: search / encoder", "search / (encoder + search)",
        *(f"encoder + search cheaper than {other} from n" for other in others),
        *(f"{MOST:,} images: {other} / (encoder + search)" for other in others),
        "images sent back to the search", "forward pass alone, median",
    ]  # fmt: skip
    rows = [row for record in records for row in way_rows(record)]
    return f"{markdown_table(ways, rows)}\n{markdown_table(crossings, [crossing_row(record) for record in records])}"


def main() -> None:
    """Run, record, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets")
    parser.add_argument("--boxes", type=listed, default=tuple(map(str, BOXES_PX)), help="in pixels, even, from 32 on")
    parser.add_argument("--records", type=Path, default=RESULTS, help=f"JSON file (default {RESULTS.name})")
    parser.add_argument("--table", type=Path, help="write the tables to this file as Markdown")
    parser.add_argument("--no-runs", action="store_true", help="only the tables of what is recorded")
    parser.add_argument(
        "--steps", type=int, default=SHIFTED_STEPS, help="training steps of the encoder (default: those of hybrid mode)"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    boxes = tuple(map(int, given.boxes))
    for box in () if given.no_runs else boxes:
        run_box(given.work.resolve(), given.records, box, given.steps)
    records = read_records(given.records)
    text = tables([record for box in boxes if (record := find_record(records, run_key(box, given.steps)))])
    print(f"\n{text}")
    if given.table:
        write_text(given.table, text)


if __name__ == "__main__":
    main()
