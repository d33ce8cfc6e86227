"""Parquet files and the Arrow files of Hugging Face datasets, row by row."""

from collections.abc import Iterator
from typing import Any

from glmcore.data.readers.record import Limits, Piece, Record, Reject
from glmcore.data.readers.streams import import_pyarrow, open_url

BATCH_ROWS = 256


def read_parquet(piece: Piece, columns: frozenset[str] | None, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Rows of the row groups of `piece`; of columns only those that are named, None for all."""
    pa = import_pyarrow("Parquet files")
    with open_url(piece.url) as file:
        try:
            table = pa.parquet.ParquetFile(file)
        except (OSError, pa.ArrowException) as error:
            reject("row 0", "damaged_file", _one_line(error))
            return
        wanted = [name for name in table.schema_arrow.names if columns is None or name in columns]
        rows = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        stop = len(rows) if piece.stop < 0 else piece.stop
        for group in range(piece.start, stop):
            first = sum(rows[:group])
            batches = table.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted)
            yield from _rows(pa, batches, first, rows[group], limits, reject)


def read_arrow(piece: Piece, columns: frozenset[str] | None, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Rows of an Arrow file, of the streaming or the random-access form."""
    pa = import_pyarrow("Arrow files")
    with open_url(piece.url) as file:
        try:
            try:
                batches: Any = pa.ipc.open_stream(file)
            except pa.ArrowInvalid:
                file.seek(0)
                reader = pa.ipc.open_file(file)
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except (OSError, pa.ArrowException) as error:
            reject("row 0", "damaged_file", _one_line(error))
            return
        if columns is not None:
            batches = (batch.select([n for n in batch.schema.names if n in columns]) for batch in batches)
        yield from _rows(pa, batches, 0, None, limits, reject)


def _rows(pa: Any, batches: Any, first: int, num_rows: int | None, limits: Limits, reject: Reject) -> Iterator[Record]:
    """Rows of batches; where one cannot be read, the rest of `num_rows` is rejected at once."""
    row = first
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator, None)
        except (OSError, pa.ArrowException) as error:
            lost = 1 if num_rows is None else first + num_rows - row
            reject(f"row {row}", "damaged_file", _one_line(error), num_records=lost)
            return
        if batch is None:
            return
        for part in (batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS)):
            for values in _values(part):
                if isinstance(values, UnicodeDecodeError):
                    reject(f"row {row}", "invalid_utf8", f"at byte {values.start}", values.object)
                elif (size := _size(values)) > limits.max_record_bytes:
                    detail = f"{size} characters, data.max_record_bytes is {limits.max_record_bytes}"
                    reject(f"row {row}", "too_long", detail, values)
                else:
                    yield Record(f"row {row}", values)
                row += 1


def _values(batch: Any) -> Iterator[Any]:
    """Each row as a dictionary, or the error of its text."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def _size(values: dict[str, Any]) -> int:
    return sum(len(value) for value in values.values() if isinstance(value, str))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
