"""What `kt.diagnostics.check_up` finds: faults injected into tasks.

    python benchmarks/study_check_up.py --half choose   # the thresholds' half
    python benchmarks/study_check_up.py --half judge    # the published table
    python benchmarks/study_check_up.py --half judge --healthy 3

The faults and tasks are those of check_up_cases.py. A line for each case is printed
and, with `--out`, written as JSON, so that a run can be continued.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import check_up_cases as cases
import keras

import keras_trainkit as kt


def judge(task, fault, seed):
    """Check one case up."""
    case = cases.make_case(task, fault)
    if case is None:
        return None
    keras.utils.set_random_seed(seed)
    started = time.process_time()
    result = kt.diagnostics.check_up(
        case.build(),
        case.x,
        case.y,
        (case.x_val, case.y_val),
        batch_size=case.batch_size,
        epochs=case.epochs,
        # Of a machine that has other things to do as well.
        time_limit=600.0,
        seed=seed,
    )
    keras.utils.clear_session()
    return {
        "task": task,
        "fault": fault,
        "seed": seed,
        "expected": case.expected,
        "findings": [(f.kind, f.severity, f.evidence) for f in result.findings],
        "skipped": result.skipped,
        "seconds": time.process_time() - started,
    }


def summary(rows):
    """Found, found first and false alarms."""
    lines = []
    by_fault = defaultdict(list)
    for row in rows:
        by_fault[row["fault"]].append(row)
    healthy = by_fault.pop(None, [])
    found = first = total = 0
    lines.append("| fault | cases | found | first |\n|---|---|---|---|")
    for fault, some in by_fault.items():
        kinds = [[f[0] for f in row["findings"]] for row in some]
        right = [set(row["expected"]) for row in some]
        hits = sum(bool(r & set(k)) for k, r in zip(kinds, right, strict=True))
        firsts = sum(bool(k) and k[0] in r for k, r in zip(kinds, right, strict=True))
        lines.append(f"| {fault} | {len(some)} | {hits} | {firsts} |")
        found, first, total = found + hits, first + firsts, total + len(some)
    if total:
        lines.append(f"| all | {total} | {found / total:.1%} | {first / total:.1%} |")
    for severity in ("error", "warning") if healthy else ():
        count = sum(any(f[1] == severity for f in row["findings"]) for row in healthy)
        lines.append(f"healthy with {severity}: {count} of {len(healthy)}")
    seconds = sorted(row["seconds"] for row in rows)
    lines.append(
        f"CPU seconds: median {seconds[len(rows) // 2]:.1f}, most {seconds[-1]:.1f}"
    )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=("choose", "judge"), default="judge")
    parser.add_argument("--tasks", nargs="*", help="some tasks alone")
    parser.add_argument("--faults", nargs="*", help="some faults alone")
    parser.add_argument("--healthy", type=int, default=1, help="seeds without a fault")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each fault")
    parser.add_argument("--out", type=Path, help="a file of JSON lines")
    arguments = parser.parse_args()
    tasks = cases.CHOOSE if arguments.half == "choose" else cases.JUDGE
    faults = list(cases.FAULTS) if arguments.faults is None else arguments.faults
    rows = []
    if arguments.out and arguments.out.exists():
        rows = [json.loads(line) for line in arguments.out.read_text().splitlines()]
    done = {(row["task"], row["fault"], row["seed"]) for row in rows}
    for task in arguments.tasks or tasks:
        plan = [(None, seed) for seed in range(arguments.healthy)]
        plan += [(f, seed) for f in faults for seed in range(arguments.seeds)]
        for fault, seed in plan:
            row = (task, fault, seed) not in done and judge(task, fault, seed)
            if not row:
                continue
            rows.append(row)
            kinds = [f"{kind} {severity[0]}" for kind, severity, _ in row["findings"]]
            right = bool(kinds) and row["findings"][0][0] in row["expected"]
            mark = " " if right or not (fault or kinds) else "!"
            print(mark, task, fault, kinds, row["skipped"] or "", flush=True)
            if arguments.out:
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(summary(rows))


if __name__ == "__main__":
    main()
