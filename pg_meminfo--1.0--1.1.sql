/* pg_meminfo--1.0--1.1.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_meminfo UPDATE TO '1.1'" to load this file. \quit

-- pg_meminfo_contexts(): memory contexts of one process
CREATE FUNCTION pg_meminfo_contexts(
    IN pid int,
    OUT id int,
    OUT parent_id int,
    OUT name text,
    OUT ident text,
    OUT type text,
    OUT level int,
    OUT path int[],
    OUT total_bytes bigint,
    OUT tree_bytes bigint
) RETURNS SETOF record
AS 'MODULE_PATHNAME', 'pg_meminfo_contexts'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000 ROWS 200;
COMMENT ON FUNCTION pg_meminfo_contexts(int) IS
'Memory contexts of one process of the cluster, read from its memory while it goes on running; no rows for any other
pid. All rows describe one moment. The process is neither stopped nor asked, so a busy one can be read, too. An idle
process is read in about 0.3 ms, and 1 to 3 ms more for each 1,000 contexts.
If the contexts change during all of 20,000 attempts or for two seconds, if there are more than a million, or if the
kernel does not let the server trace the process, there are no rows, and a WARNING says why. Needs a superuser or a
member of pg_read_all_stats, because an identifier can be the text of a statement.
The columns name, ident, type, level, path and total_bytes are those of pg_backend_memory_contexts in PostgreSQL 18.

id (number): the context''s number in this result, from 1; a parent comes before its children
parent_id (number): id of its parent; NULL for TopMemoryContext
name (text): its name; that of a hash table''s context is the hash table''s
ident (text): its identifier, such as the text of a prepared statement or the name of an index; at most 1,023 bytes;
  NULL if it has none
type (text): AllocSet, Generation, Slab or Bump
level (number): its depth; 1 for TopMemoryContext
path (numbers): the ids from TopMemoryContext to this context; NULL below level 1,000
total_bytes (bytes): allocated for this context alone, used or not (MemoryContextData.mem_allocated)
tree_bytes (bytes): allocated for this context and all contexts below it';
