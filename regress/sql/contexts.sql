--
-- pg_meminfo_contexts()
--

-- This session, as pg_backend_memory_contexts has it; both have contexts of their own statement, and the view counts the
-- header of a Generation context twice
SELECT count(*) AS contexts,
    bool_and(total_bytes = (SELECT total_bytes FROM pg_backend_memory_contexts b WHERE b.name = c.name)) AS same
FROM pg_meminfo_contexts(pg_backend_pid()) c
WHERE name IN ('TopMemoryContext', 'CacheMemoryContext', 'Timezones', 'Relcache by OID');
SELECT c.name FROM pg_meminfo_contexts(pg_backend_pid()) c WHERE level = 1;

-- Ids are numbers without a gap, a parent comes first, and the path leads from the top to the context
SELECT min(id) = 1 AND max(id) = count(*) AS ids, count(*) FILTER (WHERE parent_id IS NULL) AS tops,
    bool_and(parent_id < id) AS parents_first,
    bool_and(path[level] = id AND array_length(path, 1) = level) AS paths,
    bool_and(parent_id IS NOT DISTINCT FROM path[level - 1]) AS parents
FROM pg_meminfo_contexts(pg_backend_pid());

-- The bytes of a tree are those of a context and of all below it
WITH contexts AS MATERIALIZED (SELECT * FROM pg_meminfo_contexts(pg_backend_pid()))
SELECT count(*) FILTER (WHERE tree_bytes <> sum) AS differ
FROM (
    SELECT c.id, c.tree_bytes, sum(d.total_bytes) FROM contexts c JOIN contexts d ON c.id = ANY (d.path) GROUP BY c.id, c.tree_bytes
) sums;

-- Every kind of process has contexts, and the types are known
SELECT backend_type, count(*) FILTER (WHERE level = 1) AS tops, count(*) > 3 AS several,
    bool_and(type IN ('AllocSet', 'Generation', 'Slab', 'Bump')) AS types, bool_and(name <> '') AS names
FROM pg_meminfo_processes() p, LATERAL pg_meminfo_contexts(p.pid)
WHERE backend_type IN ('postmaster', 'checkpointer', 'background writer', 'walwriter')
GROUP BY backend_type ORDER BY backend_type;

-- A prepared statement with its text
PREPARE regress_meminfo (int) AS SELECT $1 AS a_number_of_mine;
SELECT name, ident, type FROM pg_meminfo_contexts(pg_backend_pid()) WHERE ident ~ 'a_number_of_mine' AND name = 'CachedPlanSource';
DEALLOCATE regress_meminfo;

-- Other processes, and none
SELECT count(*) FROM pg_meminfo_contexts(1);
SELECT count(*) FROM pg_meminfo_contexts(0);
SELECT count(*) FROM pg_meminfo_contexts(-1);
SELECT count(*) FROM pg_meminfo_contexts(2147483647);
SELECT count(*) FROM pg_meminfo_contexts(NULL);
