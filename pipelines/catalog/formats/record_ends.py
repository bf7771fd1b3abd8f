"""Where records end in text: after each newline (JSON Lines), or after each newline outside quotes (CSV).

The CSV rules are those of pyarrow's parser, so that cutting a file here and parsing the parts there gives the rows of
the whole file: a quote opens a value only at the value's start; inside, two quotes stand for one; elsewhere a quote is
an ordinary character (`5" pipe`). Both `\\n` and `\\r` end a record; the empty record between the two of `\\r\\n` is
ignored by the parser like every blank line.
"""

from __future__ import annotations

import numpy as np

NEWLINE, CARRIAGE_RETURN, QUOTE = b"\n"[0], b"\r"[0], b'"'[0]


class LineScanner:
    """Finds the ends of lines in a text that arrives in chunks.

    Args:
        offset: Where in the file the first chunk begins.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def feed(self, chunk: bytes) -> np.ndarray:
        """Takes the next chunk; gives the file offsets behind each newline in it, int64, ascending."""
        ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == NEWLINE) + (self._offset + 1)
        self._offset += len(chunk)
        return ends

    def ends_inside_quotes(self) -> bool:
        """Lines know no quotes."""
        return False


class QuoteScanner:
    """Finds the ends of CSV records in a text that arrives in chunks and begins with a record.

    No byte is looked at in Python. Quotes matter only by their runs, and of those only the odd ones change anything:
    one that begins a value opens it (or closes the open one), any other closes an open value and changes nothing
    outside. So whether a place is inside quotes is the parity of the opening runs since the last other one.

    Args:
        offset: Where in the file the first chunk begins.
        delimiter: The byte between values.
    """

    def __init__(self, offset: int, delimiter: int) -> None:
        self._offset = offset
        self._delimiter = delimiter
        self._inside = False
        self._byte_before = NEWLINE
        # Quotes at the end of a chunk: how long their run is shows only in the next one.
        self._pending = b""

    def feed(self, chunk: bytes) -> np.ndarray:
        """Takes the next chunk; gives the file offsets behind each record that ended so far, int64, ascending."""
        text = (self._pending + chunk).rstrip(b'"')
        pending_bytes = len(self._pending) + len(chunk) - len(text)
        self._pending = b'"' * pending_bytes
        return self._scan(text)

    def ends_inside_quotes(self) -> bool:
        """Whether an opened quote is still open after all chunks."""
        pending, self._pending = self._pending, b""
        self._scan(pending)
        return self._inside

    def _scan(self, text: bytes) -> np.ndarray:
        if not text:
            return np.empty(0, np.int64)
        codes = np.frombuffer(text, np.uint8)
        newlines = np.flatnonzero((codes == NEWLINE) | (codes == CARRIAGE_RETURN))
        if b'"' in text:
            run_starts, inside_after = self._quote_runs(codes)
            # Entry 0 is the state before the first run.
            states = np.concatenate([[self._inside], inside_after])
            newlines = newlines[~states[np.searchsorted(run_starts, newlines)]]
            self._inside = bool(states[-1])
        elif self._inside:
            newlines = newlines[:0]
        self._byte_before = int(codes[-1])
        ends = newlines + (self._offset + 1)
        self._offset += len(text)
        return ends

    def _quote_runs(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts of the odd runs of quotes, int64, and whether the text behind each is inside quotes, bool."""
        quotes = np.flatnonzero(codes == QUOTE)
        first_of_run = np.flatnonzero(np.diff(quotes, prepend=-2) != 1)
        lengths = np.diff(first_of_run, append=len(quotes))
        starts = quotes[first_of_run[lengths % 2 == 1]]
        before = np.where(starts > 0, codes[starts - 1], self._byte_before)
        opens = (before == self._delimiter) | (before == NEWLINE) | (before == CARRIAGE_RETURN)
        opened = np.cumsum(opens)
        # A run that cannot open leaves the text outside quotes: the count of opening ones starts anew behind it.
        reset_at = np.maximum.accumulate(np.where(opens, -int(self._inside), opened)) if len(starts) else opened
        return starts, (opened - reset_at) % 2 == 1
