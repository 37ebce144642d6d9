"""Load on the page: several clients at once, as gradio_client calls it.

    python -m apps.page --port 7860 &
    python -m tools.bench.page http://127.0.0.1:7860 --image my_image_archive/10002456.jpg

Prints the errors, the median and the 95th percentile of the seconds of a request, and with --pid the memory
of the server at the start, after a first round and at the end. Half of the requests are searches, half look
at an image. Run it on an idle machine."""

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from models import script

TEXTS = ("a dog on a beach", "people on a bridge", "a ship at sea", "a red car", "snow on a mountain")


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.bench.page", __doc__)
    p.add_argument("url", help="address of the page", metavar="URL")
    p.add_argument("--image", required=True, help="image that is sent", metavar="FILE")
    p.add_argument("--clients", type=int, default=8, help="clients at once (default %(default)s)")
    p.add_argument("--requests", type=int, default=200, help="requests of all clients (default %(default)s)")
    p.add_argument("--pid", type=int, help="process of the server, to print its memory")
    return p.parse_args(argv)


def megabytes(pid):
    """Resident memory of a process on Linux, in MB; None without a pid."""
    if pid is None:
        return None
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))


def work(args):
    """Send the requests and print the figures."""
    from gradio_client import Client, handle_file

    clients = [Client(args.url, verbose=False) for _ in range(args.clients)]
    image = handle_file(args.image)

    def ask(number):
        """(seconds, the error or None) of one request."""
        client, began, error = clients[number % args.clients], time.perf_counter(), None
        try:
            if number // args.clients % 2:
                client.predict(image, "a dog\npeople\na boat", -1, api_name="/look")
            else:
                client.predict(TEXTS[number % len(TEXTS)], "", "", None, 0, 12, api_name="/search")
        except Exception as failed:  # whatever a server answers with is counted
            error = failed
        return time.perf_counter() - began, error

    def send(count):
        with ThreadPoolExecutor(args.clients) as pool:
            return list(pool.map(ask, range(count)))

    memory = [megabytes(args.pid)]
    send(2 * args.clients)
    memory.append(megabytes(args.pid))
    began = time.perf_counter()
    done = send(args.requests)
    wall = time.perf_counter() - began
    memory.append(megabytes(args.pid))
    seconds = sorted(second for second, _ in done)
    errors = [error for _, error in done if error]
    p95 = statistics.quantiles(seconds, n=20)[-1]
    print(f"{args.clients} clients, {args.requests} requests in {wall:.1f} s: {len(errors)} errors")
    print(f"p50 {statistics.median(seconds):.2f} s, p95 {p95:.2f} s")
    if args.pid:
        print(
            "memory at the start, after a first round, at the end: "
            + ", ".join(f"{m:.0f} MB" for m in memory)
        )
    for error in errors[:3]:
        print(f"page: {error}", file=sys.stderr)
    return int(bool(errors))


def main(argv=None):
    """The exit code, see models/script.py."""
    args = parse(argv)
    return script.run("page", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
