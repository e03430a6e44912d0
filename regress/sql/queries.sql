--
-- The functions in every place where SQL allows a set-returning function
--
SELECT count(*) > 0 AS in_from FROM get_all_smaps();
SELECT count(*) > 0 AS in_select_list FROM (SELECT get_all_smaps()) AS s;
SELECT count(*) > 0 AS expanded FROM (SELECT (get_all_smaps()).*) AS s;
SELECT count(*) > 0 AS in_select_list FROM (SELECT pg_meminfo_smaps(pg_backend_pid())) AS s;
SELECT count(*) AS under_limit FROM (SELECT * FROM get_all_smaps() LIMIT 3) AS s;
SELECT count(*) AS under_limit FROM (SELECT get_all_smaps() LIMIT 3) AS s;
SELECT count(*) AS nothing FROM get_all_smaps() LIMIT 0;
SELECT count(*) > 0 AS with_ordinality FROM get_all_smaps() WITH ORDINALITY AS s WHERE s.ordinality = 1;
SELECT count(*) > 0 AS rows_from
FROM ROWS FROM (get_all_smaps(), pg_meminfo_smaps(pg_backend_pid())) AS s;
SELECT EXISTS (SELECT FROM get_all_smaps()) AS in_subquery;
SELECT count(DISTINCT a.pid) AS processes
FROM (VALUES (pg_backend_pid()), (pg_backend_pid()), (0), (NULL)) AS a (pid), LATERAL pg_meminfo_smaps(a.pid);

-- A place where a set is not allowed
SELECT 1 WHERE get_all_smaps() IS NULL;

-- Prepared, with a generic plan
SET plan_cache_mode = force_generic_plan;
PREPARE mappings (int) AS SELECT count(*) > 0 AS ok FROM pg_meminfo_smaps($1);
EXECUTE mappings (pg_backend_pid());
EXECUTE mappings (0);
EXECUTE mappings (pg_backend_pid());
DEALLOCATE mappings;
RESET plan_cache_mode;

-- A cursor: forward, backward, and held after the end of its transaction
BEGIN;
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT pid > 0 AS ok FROM get_all_smaps();
FETCH 2 FROM c;
FETCH PRIOR FROM c;
MOVE ABSOLUTE 3 IN c;
FETCH BACKWARD 1 FROM c;
COMMIT;
FETCH ABSOLUTE 1 FROM c;
CLOSE c;

-- A subtransaction that rolls back, with a cursor open inside it
BEGIN;
SAVEPOINT s;
DECLARE c CURSOR FOR SELECT pid > 0 AS ok FROM get_all_smaps();
FETCH 1 FROM c;
ROLLBACK TO s;
FETCH 1 FROM c;
ROLLBACK TO s;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
COMMIT;

-- Errors that are caught
DO $$
BEGIN
    FOR i IN 1..20 LOOP
        BEGIN
            PERFORM 1 / (pid - pid) FROM get_all_smaps();
        EXCEPTION WHEN division_by_zero THEN
            NULL;
        END;
    END LOOP;
END
$$;
SELECT count(*) > 0 AS ok FROM get_all_smaps();

-- In a read-only transaction
BEGIN READ ONLY;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
COMMIT;

-- Spilling to disk
SET work_mem = '64kB';
SELECT count(*) > 0 AS ok FROM get_all_smaps();
RESET work_mem;

-- A declaration that does not match the library is refused, so that no value is read as another type
CREATE FUNCTION too_few(OUT pid int, OUT start_address text) RETURNS SETOF record
    AS '$libdir/pg_meminfo', 'get_smaps' LANGUAGE C;
SELECT * FROM too_few();
CREATE FUNCTION not_in_this_order(OUT start_address text, OUT pid int) RETURNS SETOF record
    AS '$libdir/pg_meminfo', 'pg_meminfo_smaps' LANGUAGE C;
SELECT * FROM not_in_this_order();
CREATE FUNCTION one_value() RETURNS int AS '$libdir/pg_meminfo', 'get_smaps' LANGUAGE C;
SELECT one_value();
DROP FUNCTION too_few, not_in_this_order, one_value;
DO $$
DECLARE
    columns text;
BEGIN
    -- The right names, but one column has another type, each in turn
    FOR columns IN
        SELECT string_agg(format('OUT %I %s', name,
            CASE WHEN ordinality <> wrong THEN format_type(type, NULL)
                 WHEN type = 'int'::regtype THEN 'text' ELSE 'int' END), ', ' ORDER BY ordinality)
        FROM generate_series(1, 33) AS wrong,
            pg_proc, unnest(proargnames, proallargtypes) WITH ORDINALITY AS t (name, type, ordinality)
        WHERE pg_proc.oid = 'get_all_smaps'::regproc
        GROUP BY wrong
    LOOP
        EXECUTE format('CREATE FUNCTION other_type(%s) RETURNS SETOF record '
                       'AS ''$libdir/pg_meminfo'', ''get_smaps'' LANGUAGE C', columns);
        BEGIN
            PERFORM * FROM other_type();
            RAISE NOTICE 'not refused: %', columns;
        EXCEPTION WHEN invalid_function_definition THEN
            NULL;
        END;
        DROP FUNCTION other_type;
    END LOOP;
END
$$;
