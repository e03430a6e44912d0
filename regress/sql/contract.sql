--
-- What the extension installs, read from the catalog
--
CREATE EXTENSION pg_meminfo;

SELECT extname, extversion, extrelocatable FROM pg_extension WHERE extname = 'pg_meminfo';

-- Every object, and nothing else
SELECT pg_describe_object(classid, objid, objsubid) AS object
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
    AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
    AND classid <> 'pg_type'::regclass
ORDER BY object COLLATE "C";

-- The published contract: names, order, types
SELECT ordinality AS position, name, format_type(type, NULL) AS type
FROM pg_proc, unnest(proargnames, proallargtypes) WITH ORDINALITY AS t (name, type, ordinality)
WHERE pg_proc.oid = 'get_all_smaps'::regproc
ORDER BY ordinality;

SELECT proname, prosrc, lanname, proretset, provolatile, proisstrict, proparallel
FROM pg_proc JOIN pg_language ON prolang = pg_language.oid
WHERE pg_proc.oid IN ('get_all_smaps'::regproc, 'pg_meminfo_smaps'::regproc)
ORDER BY proname;

-- The new surface
SELECT ordinality AS position, name, mode, format_type(type, NULL) AS type
FROM pg_proc, unnest(proargnames, proargmodes, proallargtypes) WITH ORDINALITY AS t (name, mode, type, ordinality)
WHERE pg_proc.oid = 'pg_meminfo_smaps'::regproc
ORDER BY ordinality;

SELECT attnum AS position, attname AS name, format_type(atttypid, atttypmod) AS type
FROM pg_attribute
WHERE attrelid = 'smap_summary'::regclass
ORDER BY attnum;

-- The summary's names are the contract's, from mem_size to thp_eligible
SELECT array_agg(attname::text ORDER BY attnum) =
    (SELECT proargnames[10:32] FROM pg_proc WHERE oid = 'get_all_smaps'::regproc) AS same_names
FROM pg_attribute
WHERE attrelid = 'smap_summary'::regclass AND attnum > 1;

--
-- Comments: on every object, and on every column, unit first
--
SELECT pg_describe_object(classid, objid, 0) AS object_without_comment
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
    AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
    AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
    AND obj_description(objid, classid::regclass::name) IS NULL;

SELECT attname AS column_without_unit
FROM pg_attribute
WHERE attrelid = 'smap_summary'::regclass AND attnum > 0
    AND (col_description(attrelid, attnum) ~ '^(kB|mappings|identifier): [A-Za-z]') IS NOT TRUE;

-- A function's columns can have no comments of their own: the function's has a line for each, in their order
SELECT proname, name AS column_without_unit
FROM pg_proc, unnest(proargnames, proargmodes) AS t (name, mode)
WHERE oid IN ('get_all_smaps'::regproc, 'pg_meminfo_smaps'::regproc) AND mode = 'o'
    AND (obj_description(oid, 'pg_proc') ~ format(E'\n%s \\([A-Za-z0-9 ]+\\): [A-Za-z]', name)) IS NOT TRUE;

SELECT proname, proargnames[1 + pronargs:] = ARRAY(
    SELECT match[1] FROM regexp_matches(obj_description(oid, 'pg_proc'), E'\n([a-z_]+) \\(', 'g') AS match
) AS a_line_for_each_column
FROM pg_proc
WHERE oid IN ('get_all_smaps'::regproc, 'pg_meminfo_smaps'::regproc)
ORDER BY proname;
