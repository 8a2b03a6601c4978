"""Seeded faults: does the crash suite notice when the core stops keeping a rule?

Each mutant breaks one rule in a copy of the crate; the suite must fail on it. Run by hand or by
``make soak``::

    python3 storage/core/tests/crash/mutants.py [NAME ...]

Prints one line a mutant. Exit status 1 if one survives or no longer applies to the source: then the
rule has moved and the mutant must follow it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CRATE = Path(__file__).resolve().parents[2]

STAGES = [
    "exhaustive::one",
    "faults::",
    "threads::",
    "flips::flipped",
    "reuse::",
    "exhaustive::killed",
    "sampled::",
    "exhaustive::three",
]
"""Parts of the suite, cheapest first; the first that fails ends the work on a mutant."""

STAGE_S_MAX = 300


@dataclass(frozen=True)
class Mutant:
    """``old``, found exactly once in the crate's sources, becomes ``new``."""

    name: str
    old: str
    new: str


MUTANTS = [
    Mutant("flush answers before the sync", "self.flush_to(target)\n", "Ok(())\n"),
    Mutant("flush forgets retired segments", "retired.iter().chain(&active)", "active.iter()"),
    Mutant(
        "flush covers what came during it",
        "guard.append_mark(upto);\n",
        "let upto = guard.state.last_content.max(upto);\n        guard.append_mark(upto);\n",
    ),
    Mutant(
        "a new segment's name is not synced",
        "if !segment.is_name_durable.load(Ordering::Acquire) {",
        "if false {",
    ),
    Mutant(
        "a failed sync does not fail the log",
        '                self.state.lock().failed.get_or_insert(format!("sync failed: {error}"));\n'
        "                return",
        "                return",
    ),
    Mutant(
        "a trailer before its records are durable",
        "= self.sync_segment(segment) {",
        "= Ok::<(), Error>(()) {",
    ),
    Mutant(
        "the anchor is not synced",
        "        self.file.sync_data().map_err(place)\n",
        "        Ok(())\n",
    ),
    Mutant("the anchor read is not settled", "        anchor.settle()?;\n", ""),
    Mutant(
        "the anchor before the log is durable",
        "        self.log.flush()?;\n        if let Some(snapshot) = snapshot {",
        "        if let Some(snapshot) = snapshot {",
    ),
    Mutant("both roots in one slot", "self.root.seq % 2 * SLOT_LEN as u64", "0"),
    Mutant(
        "segments are freed before the root is durable",
        "let root = self.commit(next, &changes, cut.snapshot)?;",
        "changes.apply_to(&mut self.usage.lock());\n        self.free_garbage(&next)?;\n"
        "        let root = self.commit(next, &UsageChanges::default(), cut.snapshot)?;\n"
        "        let changes = UsageChanges::default();",
    ),
    Mutant(
        "a new disk's name is not synced",
        '        anchors.sync_dir("anchors").map_err(|e| Error::io("anchors", e))\n',
        "        Ok(())\n",
    ),
    Mutant("recovery ignores groups", "        if header.continues {\n", "        if false {\n"),
    Mutant("recovery believes payloads", "!(record.is_payload_valid ||", "!(true ||"),
    Mutant(
        "recovery takes damage for a torn end", "if self.next_lsn <= self.durable {", "if false {"
    ),
    Mutant(
        "recovery leaves later segments",
        "        fetcher.segments.remove(segment.id)?;\n",
        "        let _ = segment;\n",
    ),
    Mutant(
        "recovery leaves the torn end",
        "if file_len(segment)? > retired.records_end {",
        "if false {",
    ),
    Mutant(
        "recovered segments count as durable",
        "LogStart { next, prev, unsynced,",
        "LogStart { next, prev, unsynced: drop_all(unsynced),",
    ),
    Mutant(
        "recovery trusts pages that a failed sync left",
        "        write_again(segment, range.clone())?;\n",
        "        let _ = (segment, range);\n",
    ),
    Mutant(
        "unsealed files are used again", "if is_sealed && read", "if (is_sealed || true) && read"
    ),
    Mutant("a batch's padding is left between records", "end += len;", "end += len + padding;"),
    Mutant("reads believe payloads", "payload.filter(|p| header.payload_matches(p))", "payload"),
    Mutant(
        "ragged writes do not look again",
        "if !ragged.iter().flatten().all(is_current) {",
        "if false && !ragged.iter().flatten().all(is_current) {",
    ),
    Mutant(
        "the cleaner does not look again",
        "if !origins.iter().all(",
        "if false && !origins.iter().all(",
    ),
    Mutant(
        "a snapshot answers before its log is durable",
        "        disks.iter().try_for_each(|disk| disk.log.flush())?;\n",
        "",
    ),
    Mutant(
        "a disk's root moves past a snapshot without a tree",
        "            self.pending.settle(snapshot, &root, &self.fetcher)?;\n",
        "            let _ = snapshot;\n",
    ),
    Mutant(
        "recovery does not cut off where snapshots were taken",
        "        self.cut_off_before(group[0].0.lsn);\n",
        "",
    ),
    Mutant("shrinking leaves the data", "        if size_bytes < old {\n", "        if false {\n"),
]


def apply(mutant: Mutant, crate: Path) -> str | None:
    """Breaks the rule in `crate`; says why it cannot."""
    places = [
        path for path in sorted((crate / "src").rglob("*.rs")) if mutant.old in path.read_text()
    ]
    times = sum(path.read_text().count(mutant.old) for path in places)
    if times != 1:
        return f"its text is there {times} times"
    [path] = places
    text = path.read_text().replace(mutant.old, mutant.new)
    if "drop_all(" in mutant.new:
        text += "\nfn drop_all<T>(_: Vec<T>) -> Vec<T> {\n    Vec::new()\n}\n"
    path.write_text(text)
    return None


def first_failure(crate: Path, target: Path) -> str | None:
    """The first stage of the suite that fails, and its first failing test."""
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(target),
        "RUST_BACKTRACE": "0",
        "RUSTFLAGS": "-Awarnings",
    }
    command = ["cargo", "test", "-q", "--features", "testing", "--test", "crash"]
    built = subprocess.run(
        [*command, "--no-run"],
        cwd=crate,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise SystemExit(f"does not compile:\n{built.stderr}")
    for stage in STAGES:
        try:
            run = subprocess.run(
                [*command, stage],
                cwd=crate,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=STAGE_S_MAX,
            )
        except subprocess.TimeoutExpired:
            return f"{stage} does not end"
        if run.returncode:
            failed = [
                line.strip()
                for line in run.stdout.splitlines()
                if line.startswith("    ") and "::" in line
            ]
            return failed[0] if failed else stage
    return None


def main(names: list[str]) -> int:
    """Tries the mutants of these names, all if there are none; the exit status."""
    wanted = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="nearstone-mutants-") as folder:
        target = Path(os.environ.get("CARGO_TARGET_DIR", folder)) / "mutants"
        for mutant in wanted:
            crate = Path(folder) / "core"
            shutil.rmtree(crate, ignore_errors=True)
            shutil.copytree(CRATE, crate, ignore=shutil.ignore_patterns("target"))
            why = apply(mutant, crate)
            caught = None if why else first_failure(crate, target)
            bad += caught is None
            outcome = f"DOES NOT APPLY: {why}" if why else "SURVIVES"
            print(f"{mutant.name}: {f'caught by {caught}' if caught else outcome}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
