"""Tells Ray that this node will be taken away, once its cloud announces that: runs on each spot node, beside `ray start`.

    python -m pipelines.program.spot_notice aws

Ray's autoscaler does not look for the announcement, which a node finds at an address that only it can reach: on AWS two minutes
before (the time is in it), on Google Cloud 30 seconds. It ends once it has told Ray, which then places nothing more on the node.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

_METADATA = {"aws": "http://169.254.169.254", "google": "http://metadata.google.internal"}
_EVERY = 5.0  # seconds between two looks, as AWS recommends
_LIMIT = 10.0  # seconds for an answer
_GOOGLE_SECONDS = 30


def seconds_left(cloud: str, metadata: str) -> float | None:
    """Seconds until the node is taken away; None if that is not announced. Raises `OSError` if nobody answers."""
    if cloud == "google":
        announced = _get(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        return _GOOGLE_SECONDS if announced.strip().upper() == "TRUE" else None
    token = _get(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    try:
        text = _get(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except HTTPError as error:
        if error.code == 404:  # nothing is announced
            return None
        raise
    when = datetime.fromisoformat(json.loads(text)["time"])
    return (when - datetime.now(UTC)).total_seconds()


def _get(address: str, headers: dict[str, str], method: str = "GET") -> str:
    with build_opener(ProxyHandler({})).open(Request(address, headers=headers, method=method), timeout=_LIMIT) as answer:
        return answer.read().decode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait for the announcement, and tell Ray. Exit code: that of `ray drain-node`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.program.spot_notice",
        description="Tell Ray that this node will be taken away, once its cloud announces that.",
    )
    parser.add_argument("cloud", choices=_METADATA)
    parser.add_argument("--address", help="IP:PORT of Ray's head; that of the Ray on this machine by default")
    parser.add_argument("--node-id", help="Ray's id of the node; that of this machine by default")
    parser.add_argument("--metadata", metavar="URL", help="where to look, for tests")
    options = parser.parse_args(arguments)
    while True:
        try:
            left = seconds_left(options.cloud, options.metadata or _METADATA[options.cloud])
        except (OSError, ValueError, LookupError) as error:
            print(f"the cloud's announcements cannot be read, trying again: {error}", file=sys.stderr, flush=True)
            left = None
        if left is not None:
            break
        time.sleep(_EVERY)
    print(f"this node will be taken away in {left:.0f} s", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", f"announced by {options.cloud}", "--deadline-remaining-seconds", str(max(1, int(left)))]
    for name, value in (("--address", options.address), ("--node-id", options.node_id)):
        command += [name, value] if value else []
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
