--
-- Who may call the functions: superusers and members of pg_read_all_stats
--
CREATE ROLE regress_meminfo_nobody;
CREATE ROLE regress_meminfo_stats IN ROLE pg_read_all_stats;
CREATE ROLE regress_meminfo_monitor IN ROLE pg_monitor;
CREATE ROLE regress_meminfo_noinherit NOINHERIT IN ROLE pg_read_all_stats;


SET ROLE regress_meminfo_nobody;
DO $$
BEGIN
    PERFORM * FROM get_all_smaps();
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE '% %', SQLSTATE, SQLERRM;
END
$$;
SELECT count(*) FROM get_all_smaps();
SELECT count(*) FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) FROM smap_summary;
SELECT count(*) FROM pg_meminfo_processes();
SELECT count(*) FROM pg_meminfo;
SELECT count(*) FROM pg_meminfo_mappings;
SELECT count(*) FROM pg_meminfo_rollup(pg_backend_pid());
SELECT count(*) FROM pg_meminfo_private(pg_backend_pid());
SELECT count(*) FROM pg_meminfo_contexts(pg_backend_pid());
SELECT count(*) FROM pg_meminfo_segments;
SELECT count(*) FROM pg_meminfo_cluster;
SELECT count(*) FROM pg_meminfo_host;
SELECT count(*) FROM pg_meminfo_cgroups;
-- The function is strict: with NULL it is not called, so nothing is refused
SELECT count(*) FROM pg_meminfo_smaps(NULL);
RESET ROLE;

SET ROLE regress_meminfo_stats;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
SELECT count(*) > 0 AS ok FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) > 0 AS ok FROM smap_summary;
SELECT count(*) > 0 AS ok FROM pg_meminfo;
SELECT count(*) > 0 AS ok FROM pg_meminfo_mappings WHERE pid = pg_backend_pid();
SELECT count(*) AS ok FROM pg_meminfo_cluster, pg_meminfo_host;
RESET ROLE;

SET ROLE regress_meminfo_monitor;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
SELECT count(*) > 0 AS ok FROM pg_meminfo_smaps(pg_backend_pid());
SELECT count(*) > 0 AS ok FROM smap_summary;
RESET ROLE;

-- A NOINHERIT member has the privileges of a role only after SET ROLE
SET ROLE regress_meminfo_noinherit;
SELECT count(*) > 0 AS ok FROM get_all_smaps();
RESET ROLE;

-- The view's owner does not matter: the functions check the current user
CREATE VIEW owned_by_superuser AS SELECT * FROM get_all_smaps();
GRANT SELECT ON owned_by_superuser TO regress_meminfo_nobody;
SET ROLE regress_meminfo_nobody;
SELECT count(*) FROM owned_by_superuser;
RESET ROLE;

-- SECURITY DEFINER works: the current user is the owner of the function
CREATE FUNCTION definer() RETURNS boolean LANGUAGE sql SECURITY DEFINER
    AS 'SELECT count(*) > 0 FROM get_all_smaps()';
SET ROLE regress_meminfo_nobody;
SELECT definer();
RESET ROLE;

-- Refused 1000 times in one session
SET ROLE regress_meminfo_nobody;
DO $$
DECLARE
    refused int := 0;
BEGIN
    FOR i IN 1..1000 LOOP
        BEGIN
            PERFORM * FROM get_all_smaps();
        EXCEPTION WHEN insufficient_privilege THEN
            refused := refused + 1;
        END;
    END LOOP;
    RAISE NOTICE 'refused % times', refused;
END
$$;
RESET ROLE;

DROP FUNCTION definer;
DROP VIEW owned_by_superuser;
DROP ROLE regress_meminfo_nobody, regress_meminfo_stats, regress_meminfo_monitor, regress_meminfo_noinherit;
