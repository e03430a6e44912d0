"""Ways in which one session needs memory without end, each with what distinguishes it for the guard."""

# Each of these would need many GB. The executor looks for a cancel in between.
INTERRUPTIBLE = {
    "array_agg": "SELECT array_agg(n) FROM generate_series(1, 2000000000) AS n",
    "sort": "SELECT count(*) FROM (SELECT repeat('x', 100) || n AS x FROM generate_series(1, 200000000) AS n ORDER BY x OFFSET 1) AS s",
    "hashagg": "SELECT count(*) FROM (SELECT repeat('x', 100) || n AS x FROM generate_series(1, 200000000) AS n GROUP BY 1) AS s",
    "repeat": "SELECT array_agg(repeat('x', 1000000) || n) FROM generate_series(1, 20000) AS n",
    "string_agg": "SELECT array_agg(s) FROM (SELECT string_agg(repeat('x', 10000), '') AS s FROM generate_series(1, 2000000) AS n GROUP BY n / 10000) AS s",
    "plpgsql": "DO $$ DECLARE held text[]; BEGIN FOR n IN 1..30000 LOOP held[n] := repeat('x', 1000000); END LOOP; END $$",
}

# These ask for it at once, or in loops in which nothing is canceled.
UNINTERRUPTIBLE = {
    "array_fill": "SELECT cardinality(array_fill(repeat('x', 1000), ARRAY[134000000 / 200, 1]))"
    " FROM generate_series(1, 8) AS n GROUP BY n",
    "jsonb": "SELECT ('[' || repeat('{\"a\":[1,2,3]},', 30000000) || '1]')::jsonb IS NULL",
    "split": "SELECT string_to_array(repeat('x,', 500000000), ',') IS NULL",
    "blocks": "SELECT array_agg(repeat('x', 1000000000)) FROM generate_series(1, 4) AS n",
    # A table of 2^27 buckets.
    "hash_table": "SELECT count(*) FROM (SELECT n FROM generate_series(1, 100000000) AS n GROUP BY n) AS s",
}

EATERS = INTERRUPTIBLE | UNINTERRUPTIBLE

# Nothing goes to disk, and nobody shares the work.
SETTINGS = ["work_mem=16GB", "hash_mem_multiplier=1", "max_parallel_workers_per_gather=0"]
