"""Side-by-side benchmarks of Nearstone and what a user would pick instead.

Run with `python -m benchmarks`; `docs/benchmarks.md` explains method and report.

Layout (a module imports only from modules above it):

    units, errors, interrupt       sizes as people write them; what can go wrong; Ctrl-C
    spread, workload               medians and ratios; the workloads as data
    accounting, page_cache         what the kernel says about processes and files
    server, contenders/            one NBD server of each kind
    fio, sample                    one measured run, its JSON made small; the data it writes
    machine, requirement           where it ran; whether it can run
    result                         everything one benchmark run found, as JSON
    schedule, session              the interleaved order; carrying it out
    goal, report, plot             what it means, in words and pictures
    cli                            the command line

Nothing here imports Nearstone: it is started and measured like every other contender.
"""
