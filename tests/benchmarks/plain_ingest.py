"""What ingestion is compared with: plain scripts that turn ml-1m files into Parquet with slot columns.

    python tests/benchmarks/plain_ingest.py {loop,polars,pyarrow} SOURCE OUT [--rows N]

`loop` is what the article's reader would write: dictionaries for the joins, xxhash for each value of
each row. `polars` and `pyarrow` are the best known to us: slots are computed once for each user and
movie and joined on, the ratings streamed in chunks over all cores. All three write the same columns
as slotstore under the default spec (zstd, level 1), but neither vocabulary, digests, rejects nor
checks: their job is smaller than an ingestion's.
"""

import argparse
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from featurestore.spec import load_spec

USERS = ("user_id", "gender", "age", "occupation", "zip")
MOVIES = ("movie_id", "title", "genres")
RATINGS = ("user_id", "movie_id", "rating", "timestamp")
CHUNK = 500_000
SPEC = load_spec("movielens")


def slots(row):
    """Hash each feature's value in `row` with each seed, as the article does."""
    return {
        name: xxhash.xxh32(row[feature.column].encode(), seed=seed).intdigest() % SPEC.table.num_slots
        for feature in SPEC.features
        if feature.column in row
        for name, seed in zip(feature.slot_columns, feature.seeds, strict=True)
    }


def entities(path, names):
    """Read users or movies as a list of dictionaries."""
    lines = path.read_text("latin-1").splitlines()
    return [dict(zip(names, line.split("::", len(names) - 1), strict=True)) for line in lines]


def with_slots(rows):
    return [{**row, **slots(row)} for row in rows]


def loop(source, out, limit):
    import pyarrow as pa
    import pyarrow.parquet as pq

    users = {row["user_id"]: row for row in entities(source / "users.dat", USERS)}
    movies = {row["movie_id"]: row for row in entities(source / "movies.dat", MOVIES)}
    writer = None
    with (source / "ratings.dat").open(encoding="latin-1") as lines:
        for chunk in iter(lambda: list(itertools.islice(lines, CHUNK)), []):
            rows = []
            for line in chunk:
                user, movie, rating, timestamp = line.rstrip("\n").split("::")
                row = {**users[user], **movies[movie], "rating": float(rating), "timestamp": int(timestamp)}
                rows.append({**row, **slots(row)})
            table = pa.Table.from_pylist(rows)
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd", compression_level=1)
            writer.write_table(table)
            limit -= len(chunk)
            if limit <= 0:
                break
    writer.close()


def polars(source, out, limit):
    import polars as pl

    kept = {"column_1": "user_id", "column_3": "movie_id", "column_5": "rating", "column_7": "timestamp"}
    types = {"column_1": pl.String, "column_3": pl.String, "column_5": pl.Float32, "column_7": pl.Int64}
    schema = {f"column_{n}": types.get(f"column_{n}", pl.String) for n in range(1, 8)}
    ratings = pl.scan_csv(
        source / "ratings.dat", separator=":", has_header=False, schema=schema, quote_char=None
    )
    joined = ratings.select(pl.col(old).alias(new) for old, new in kept.items())
    for file, names in (("users.dat", USERS), ("movies.dat", MOVIES)):
        frame = pl.DataFrame(with_slots(entities(source / file, names))).cast({pl.Int64: pl.Int32})
        joined = joined.join(frame.lazy(), on=names[0], how="inner", maintain_order="left")
    joined.sink_parquet(out, compression="zstd", compression_level=1)


def encoded(column):
    import numpy as np
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return column.combine_chunks().dictionary_encode()
    return column.to_numpy().astype(np.int32)


def joined(table, tables):
    """Append the columns of users and movies to ratings."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for (key, keys), *columns in tables:
        column = table[key].combine_chunks()
        known = pc.index_in(column.dictionary, value_set=keys.dictionary).to_numpy()
        rows = known[column.indices.to_numpy()]
        for name, values in columns:
            if isinstance(values, pa.DictionaryArray):
                taken = pa.DictionaryArray.from_arrays(values.indices.to_numpy()[rows], values.dictionary)
            else:
                taken = pa.array(values[rows])
            table = table.append_column(name, taken)
    return table


def pyarrow(source, out, limit):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.dictionary(pa.int32(), pa.string())
    names = ["user_id", "a", "movie_id", "b", "rating", "c", "timestamp"]
    types = {"user_id": text, "movie_id": text, "rating": pa.float32(), "timestamp": pa.int64()}
    tables = []
    for file, columns in (("users.dat", USERS), ("movies.dat", MOVIES)):
        table = pa.Table.from_pylist(with_slots(entities(source / file, columns)))
        tables.append([(name, encoded(table[name])) for name in table.column_names])
    few = [*RATINGS[:3], *USERS[1:], *MOVIES[1:]]
    settings = {"compression": "zstd", "compression_level": 1, "write_statistics": ["timestamp"]}
    out.mkdir()

    def write(number, batch):
        path = out / f"{number}.parquet"
        pq.write_table(joined(pa.table(batch), tables), path, use_dictionary=few, **settings)

    with ThreadPoolExecutor() as pool:  # a few batches in flight, no more: memory stays bounded
        pending = set()
        for number, batch in enumerate(pyarrow_csv(source / "ratings.dat", names, types)):
            pending.add(pool.submit(write, number, batch))
            if len(pending) > 4:
                pending.pop().result()
        for future in pending:
            future.result()


def pyarrow_csv(path, names, types):
    import pyarrow.csv as csv

    return csv.open_csv(
        path,
        csv.ReadOptions(column_names=names, block_size=8 << 20),
        csv.ParseOptions(delimiter=":", quote_char=False),
        csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["loop", "polars", "pyarrow"])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10**12, help="stop the loop after about this many rows")
    args = parser.parse_args()
    {"loop": loop, "polars": polars, "pyarrow": pyarrow}[args.kind](args.source, args.out, args.rows)


if __name__ == "__main__":
    main()
