"""Makes tables and a plot of what benches/sql.py has measured: report.py results.json growth.svg"""

import json
import statistics
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def milliseconds(times):
    return statistics.median(times) * 1000


def ratio(result, name):
    """The median of each round's ratio to the bare read of the same files in that round; of what reads no process's files, none."""
    if name not in result["limits"]:
        return ""
    limit = result["times"][result["limits"][name]]
    return f"{statistics.median(time / bare for time, bare in zip(result['times'][name], limit)):.2f}"


def print_table(title, header, rows):
    widths = [max(len(str(row[at])) for row in [header, *rows]) for at in range(len(header))]
    print(f"\n{title}\n")
    for row in [header, *rows]:
        print("  ".join(str(cell).ljust(width) if at == 0 else str(cell).rjust(width) for at, (cell, width) in enumerate(zip(row, widths))))


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
    two = result["times"]["bare read of smaps, 2 threads"]
    readers = statistics.median(time / bare for time, bare in zip(result["times"]["get_all_smaps(), 2 readers"], two))
    print(f"\nget_all_smaps() with 2 readers is {readers:.2f} of two threads that read bare")
    each = milliseconds(result["times"]["bare read of smaps"]) / result["processes"]
    cancels = [f"{latency * 1000:.1f}" for latency in sorted(result["cancel"])]
    print(f"from cancel to error in get_all_smaps(): {', '.join(cancels)} ms; one process's smaps takes {each:.1f} ms")


def print_growth(results, title, of):
    names = list(results[0]["times"])
    header = ["median ms", *[of(result) for result in results]]
    print_table(title, header, [[name, *[f"{milliseconds(result['times'][name]):.1f}" for result in results]] for name in names])


def plot(axes, results, of, label):
    for name in results[0]["times"]:
        style = "--" if name.startswith("bare") else "-"
        axes.plot([of(result) for result in results], [milliseconds(result["times"][name]) for result in results], style, marker="o", label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("ms (median)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


def main():
    with open(sys.argv[1]) as file:
        results = [json.loads(line) for line in file]
    for result in results:
        if result["name"] in ("untouched", "touched"):
            print_comparison(result)
    sessions = [result for result in results if result["name"] == "sessions"]
    buffers = [result for result in results if result["name"] == "shared_buffers"]
    print_growth(sessions, "by number of sessions, shared buffers untouched", lambda result: result["sessions"])
    print_growth(buffers, f"by MB of shared buffers that each of {buffers[0]['sessions']} sessions has touched", lambda result: result["touched"] >> 20)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5))
    plot(left, sessions, lambda result: result["sessions"], "sessions, shared buffers untouched")
    plot(right, buffers, lambda result: result["touched"] / 2**30, f"GB of shared buffers touched by each of {buffers[0]['sessions']} sessions")
    right.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(sys.argv[2])


main()
