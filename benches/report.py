"""Prints tables of what benches/sql.py has measured, and draws the growth of cost: report.py results.json growth.svg"""

import json
import statistics
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

# The target for each function, a ratio to the bare read: with shared buffers untouched, and with 1 GB of them touched
# by each session.
TARGETS = {
    "get_all_smaps()": (1.15, 1.03),
    "get_all_smaps(), 2 readers": (None, 0.55),
    "pg_meminfo_private(pid)": (1.25, 1.25),
    "pg_meminfo_cluster": (1.6, 1.6),
    "pg_meminfo_segments": (1.5, 1.5),
    "pg_meminfo_processes()": (1.25, 1.25),
}

# Colour and marker of each line in the plot: the palette of Okabe and Ito, which colour-blind people can tell apart.
STYLES = {
    "get_all_smaps()": ("#0072B2", "o"),
    "get_all_smaps(), 2 readers": ("#E69F00", "s"),
    "pg_meminfo_rollup(pid)": ("#D55E00", "^"),
    "pg_meminfo_cluster": ("#CC79A7", "v"),
    "pg_meminfo_private(pid)": ("#009E73", "D"),
    "pg_meminfo": ("#000000", "X"),
}


def milliseconds(times):
    return statistics.median(times) * 1000


def ratios(result, name, limit=None):
    """The ratio of the time to that of a bare read in each round. By default, one thread reads the same files."""
    limit = result["times"][limit or result["limits"][name]]
    return [time / bare for time, bare in zip(result["times"][name], limit)]


def ratio(result, name):
    """The median of these ratios, as text; empty for a function that reads no files of processes."""
    return f"{statistics.median(ratios(result, name)):.2f}" if name in result["limits"] else ""


def print_table(title, header, rows):
    widths = [max(len(str(row[at])) for row in [header, *rows]) for at in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, *rows]:
        cells = [str(cell).ljust(width) if at == 0 else str(cell).rjust(width) for at, (cell, width) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def print_comparison(result):
    touched = f"each has touched {result['touched'] >> 20} MB of shared buffers" if result["touched"] else "shared buffers untouched"
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    rows = []
    for name, times in result["times"].items():
        lowest, highest = min(times) * 1000, max(times) * 1000
        rows.append([name, f"{milliseconds(times):.1f}", f"{lowest:.1f}", f"{highest:.1f}", ratio(result, name)])
    print_table(
        f"{result['sessions']} idle sessions, {result['processes']} processes, {touched} ({settings})",
        ["", "median ms", "least", "most", "ratio to bare read"],
        rows,
    )
    readers = statistics.median(ratios(result, "get_all_smaps(), 2 readers", "bare read of smaps, 2 threads"))
    print(f"\nratio of get_all_smaps() with 2 readers to a bare read by 2 threads: {readers:.2f}")
    each = milliseconds(result["times"]["bare read of smaps"]) / result["processes"]
    cancels = [f"{latency * 1000:.1f}" for latency in sorted(result["cancel"])]
    print(f"from cancel to error in get_all_smaps(): {', '.join(cancels)} ms; a bare read of one process's smaps: {each:.1f} ms")


def print_targets(untouched, touched):
    def cells(result, name, target):
        found = ratios(result, name)
        median = statistics.median(found)
        missed = "*" if target and median > target else ""
        return [f"{missed}{median:.2f} ({min(found):.2f} to {max(found):.2f})", f"{target:.2f}" if target else ""]

    rows = []
    for name, targets in TARGETS.items():
        files = untouched["limits"][name].removeprefix("bare read of ")
        rows.append([name, files, *cells(untouched, name, targets[0]), *cells(touched, name, targets[1])])
    print_table(
        "Targets: ratio to a bare read of the same files by one thread, median of the rounds (least to most)",
        ["", "files", "untouched", "at most", f"{touched['touched'] >> 20} MB touched", "at most"],
        rows,
    )
    print("\n* more than the target")


def print_growth(results, title, of):
    names = list(results[0]["times"])
    header = ["median ms", *[of(result) for result in results]]
    print_table(title, header, [[name, *[f"{milliseconds(result['times'][name]):.1f}" for result in results]] for name in names])


def plot(axes, results, of, label):
    """Each function as a line, and the bare read of the same files dashed in the same colour."""
    at = [of(result) for result in results]
    for name, (color, marker) in STYLES.items():
        limit = results[0]["limits"].get(name)
        if name == "get_all_smaps(), 2 readers":
            limit += ", 2 threads"
        for times, style in (limit, {"linestyle": (0, (4, 3)), "linewidth": 1}), (name, {"marker": marker, "markersize": 6, "linewidth": 1.6}):
            if times in results[0]["times"]:
                axes.plot(at, [milliseconds(result["times"][times]) for result in results], color=color, **style)
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{number:.3g}" for number in at])
    axes.set_xlabel(label)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw(sessions, buffers, path):
    # Text stays text, and the same numbers give the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.sans-serif": ["DejaVu Sans", "Arial"], "font.size": 11})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), sharey=True)
    plot(left, sessions, lambda result: result["sessions"], "number of sessions (shared buffers untouched)")
    plot(right, buffers, lambda result: result["touched"] / 2**30, f"GB of shared buffers touched by each of {buffers[0]['sessions']} sessions")
    left.set_yscale("log")
    left.set_yticks([1, 10, 100, 1000], ["1 ms", "10 ms", "100 ms", "1 s"])
    left.minorticks_off()
    left.set_ylabel("wall-clock time of one call (median)")
    lines = [
        Line2D([], [], color=color, marker=marker, markersize=6, linewidth=1.6, label=name) for name, (color, marker) in STYLES.items()
    ]
    lines.append(Line2D([], [], color="#555555", linestyle=(0, (4, 3)), linewidth=1, label="dashed, same colour: bare read of the same files"))
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.legend(handles=lines, loc="lower center", ncol=3, frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main():
    with open(sys.argv[1]) as file:
        results = [json.loads(line) for line in file]
    compared = {result["name"]: result for result in results if result["name"] in ("untouched", "touched")}
    for result in compared.values():
        print_comparison(result)
    if len(compared) == 2:
        print_targets(compared["untouched"], compared["touched"])
    sessions = [result for result in results if result["name"] == "sessions"]
    buffers = [result for result in results if result["name"] == "shared_buffers"]
    print_growth(sessions, "by number of sessions, shared buffers untouched", lambda result: result["sessions"])
    print_growth(buffers, f"by MB of shared buffers that each of {buffers[0]['sessions']} sessions has touched", lambda result: result["touched"] >> 20)
    draw(sessions, buffers, sys.argv[2])


main()
