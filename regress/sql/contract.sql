--
-- The objects of the extension, as the system catalogs describe them
--
CREATE EXTENSION pg_meminfo;
CREATE VIEW functions AS
    SELECT p.* FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
        AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo');
CREATE VIEW view_columns AS
    SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod FROM pg_attribute a JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = a.attrelid
    WHERE d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass AND a.attnum > 0
        AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo');

SELECT extname, extversion, extrelocatable FROM pg_extension WHERE extname = 'pg_meminfo';

-- All objects of the extension
SELECT pg_describe_object(classid, objid, objsubid) COLLATE "C" AS object
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
    AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
    AND classid <> 'pg_type'::regclass
ORDER BY object;

-- The published contract: names, order, types
SELECT ordinality AS position, name, format_type(type, NULL) AS type
FROM pg_proc, unnest(proargnames, proallargtypes) WITH ORDINALITY AS t (name, type, ordinality)
WHERE pg_proc.oid = 'get_all_smaps'::regproc
ORDER BY ordinality;

SELECT proname, prosrc, lanname, proretset, provolatile, proisstrict, proparallel
FROM functions JOIN pg_language ON prolang = pg_language.oid
ORDER BY proname;

-- The functions and views besides the published contract
SELECT proname, ordinality AS position, name, mode, format_type(type, NULL) AS type
FROM functions, unnest(proargnames, proargmodes, proallargtypes) WITH ORDINALITY AS t (name, mode, type, ordinality)
WHERE proname <> 'get_all_smaps'
ORDER BY proname, ordinality;

SELECT attrelid::regclass AS view, attnum AS position, attname AS name, format_type(atttypid, atttypmod) AS type
FROM view_columns
ORDER BY attrelid::regclass::text COLLATE "C", attnum;

-- The columns of smap_summary have the same names as those of the contract, from mem_size to thp_eligible
SELECT array_agg(attname::text ORDER BY attnum) =
    (SELECT proargnames[10:32] FROM pg_proc WHERE oid = 'get_all_smaps'::regproc) AS same_names
FROM pg_attribute
WHERE attrelid = 'smap_summary'::regclass AND attnum > 1;

--
-- Every object has a comment, and every column has one that starts with its unit
--
SELECT pg_describe_object(classid, objid, 0) AS object_without_comment
FROM pg_depend
WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
    AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_meminfo')
    AND classid IN ('pg_class'::regclass, 'pg_proc'::regclass)
    AND obj_description(objid, classid::regclass::name) IS NULL;

SELECT attrelid::regclass AS view, attname AS column_without_unit
FROM view_columns
WHERE (col_description(attrelid, attnum) ~ '^[A-Za-z0-9 ]+: [A-Za-z0-9]') IS NOT TRUE;

-- The columns of a function cannot have comments, so the function's comment has a line for each column, in their order
SELECT proname, name AS column_without_unit
FROM functions, unnest(proargnames, proargmodes) AS t (name, mode)
WHERE mode = 'o'
    AND (obj_description(oid, 'pg_proc') ~ format(E'\n%s \\([A-Za-z0-9 ]+\\): [A-Za-z]', name)) IS NOT TRUE;

SELECT proname, proargnames[1 + pronargs:] = ARRAY(
    SELECT match[1] FROM regexp_matches(obj_description(oid, 'pg_proc'), E'\n([a-z_]+) \\(', 'g') AS match
) AS a_line_for_each_column
FROM functions
ORDER BY proname;

-- The lines about columns in a function's comment; a line may continue on indented lines
CREATE VIEW function_lines AS
    SELECT proname, match[1] AS name, match[2] AS unit, replace(match[3], E'\n  ', ' ') AS meaning
    FROM functions f, regexp_matches(obj_description(f.oid, 'pg_proc'),
        E'\n([a-z_]+) \\(([^)]+)\\): ([^\n]+(?:\n  [^\n]+)*)', 'g') AS match;
SELECT count(*) FROM function_lines;

-- The comment on a column of a view is the same as in the underlying function, except for columns that differ: the two
-- page sizes are the largest of the process, and thp_eligible is a count
SELECT v.attrelid::regclass AS view, attname AS column, proname AS differs_from
FROM view_columns v, function_lines l
WHERE (v.attrelid, proname) IN (('pg_meminfo'::regclass, 'pg_meminfo_processes'), ('pg_meminfo_mappings'::regclass, 'pg_meminfo_smaps'),
        ('pg_meminfo_segments'::regclass, 'pg_meminfo_segments'), ('pg_meminfo_cluster'::regclass, 'pg_meminfo_cluster'),
        ('pg_meminfo_host'::regclass, 'pg_meminfo_host'), ('pg_meminfo_cgroups'::regclass, 'pg_meminfo_cgroups'),
        ('smap_summary'::regclass, 'get_all_smaps'))
    AND attname = l.name
    AND col_description(v.attrelid, attnum) IS DISTINCT FROM format('%s: %s', unit, meaning)
ORDER BY attrelid::regclass::text COLLATE "C", attnum;

-- The first two columns of pg_meminfo_mappings come from another function
SELECT attname AS column
FROM view_columns v JOIN function_lines l ON attname = l.name AND proname = 'pg_meminfo_processes'
WHERE attrelid = 'pg_meminfo_mappings'::regclass AND col_description(v.attrelid, attnum) = format('%s: %s', unit, meaning)
ORDER BY attnum;

-- A view and a function with the same name have the same description
SELECT relname AS view, strpos(obj_description(f.oid, 'pg_proc'), obj_description(c.oid, 'pg_class') || E'\n\n') = 1 AS same_text
FROM pg_class c JOIN functions f ON proname = relname
WHERE c.oid IN (SELECT attrelid FROM view_columns)
ORDER BY relname COLLATE "C";

-- Sizes with the same name have the same description in kB and in bytes, for a mapping and for a sum over mappings
SELECT name AS column_that_differs
FROM function_lines
WHERE proname IN ('get_all_smaps', 'pg_meminfo_smaps', 'pg_meminfo_rollup') AND unit IN ('kB', 'bytes')
GROUP BY name
HAVING count(DISTINCT meaning) > 1;

-- Everyone may select from the views, because the functions check privileges
SELECT relname, relacl::text ~ '[{,]=r/' AS granted_to_public
FROM pg_class WHERE oid IN (SELECT attrelid FROM view_columns) ORDER BY relname COLLATE "C";

-- What changes state is for superusers, unless granted
SELECT proname FROM functions WHERE NOT has_function_privilege('public', oid, 'EXECUTE');

DROP VIEW functions, view_columns, function_lines;
