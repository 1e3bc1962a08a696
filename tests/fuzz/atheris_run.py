"""One parser under atheris (coverage-guided): `python -m tests.fuzz.atheris_run TARGET [-max_total_time=60]`; all of libFuzzer's options.

What it finds is written as crash-*; put its bytes, in hexadecimal, into found.json beside the mend.
"""

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bliss_ops", "json", "tomllib", "urllib"]):
    from tests.fuzz import targets


def main() -> None:
    logging.disable(logging.WARNING)  # what is fuzzed warns thousands of times
    target = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(targets.seeds(target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], corpus], lambda data: targets.run(target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
