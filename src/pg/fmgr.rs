//! How Postgres finds and calls our functions: the module magic, the version-1 records, the entry guard.

use pgrx_pg_sys as pg_sys;

use super::compat;

// A bigint must be passed by value, and the headers of texts are written in little-endian order.
#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("pg_meminfo supports 64-bit little-endian machines");

/// Says for which Postgres the library was built. The server refuses to load a library that was built for another.
// SAFETY: the name is the one that the server looks up, and no other object in this library has it.
#[unsafe(no_mangle)]
pub extern "C" fn Pg_magic_func() -> *const pg_sys::Pg_magic_struct {
    &compat::MAGIC
}

/// The calling convention of every function here.
pub const FINFO: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// A call of one of our functions by Postgres.
pub struct Call {
    fcinfo: pg_sys::FunctionCallInfo,
}

impl Call {
    /// The call's record, for Postgres functions that need it.
    pub fn fcinfo(&self) -> pg_sys::FunctionCallInfo {
        self.fcinfo
    }

    /// The record through which a set is returned. InitMaterializedSRF checks that Postgres expects a set.
    pub fn result_info(&self) -> *mut pg_sys::ReturnSetInfo {
        // SAFETY: Postgres keeps the record valid for the length of the call.
        let fcinfo = unsafe { &*self.fcinfo };
        fcinfo.resultinfo.cast()
    }

    /// The `nth` argument, counted from 0, as an integer. `None` if it is NULL.
    pub fn int4(&self, nth: usize) -> Option<i32> {
        self.datum(nth).map(|datum| datum.value() as i32)
    }

    /// The `nth` argument, counted from 0, as a bigint. `None` if it is NULL.
    pub fn int8(&self, nth: usize) -> Option<i64> {
        self.datum(nth).map(|datum| datum.value() as i64)
    }

    /// The `nth` argument, counted from 0, as a timestamp, in microseconds since the Unix epoch. Infinity is the
    /// earliest or latest. `None` if it is NULL.
    pub fn timestamptz(&self, nth: usize) -> Option<i64> {
        self.int8(nth).map(super::this_process::unix_time)
    }

    /// The `nth` argument, counted from 0, as an OID. `None` if it is NULL.
    pub fn oid(&self, nth: usize) -> Option<u32> {
        self.datum(nth).map(|datum| datum.value() as u32)
    }

    fn datum(&self, nth: usize) -> Option<pg_sys::Datum> {
        // SAFETY: Postgres keeps the record valid for the length of the call.
        let count = unsafe { (*self.fcinfo).nargs };
        assert!(nth < count as usize, "the function has fewer arguments");
        // SAFETY: as above.
        let arguments = unsafe { &raw const (*self.fcinfo).args }.cast::<pg_sys::NullableDatum>();
        // SAFETY: `nargs` arguments follow the record. The pointer does not come from a reference to the field, which
        // would be valid only for the record itself.
        let argument = unsafe { arguments.add(nth) };
        // SAFETY: as above.
        let argument = unsafe { argument.read() };
        (!argument.isnull).then_some(argument.value)
    }
}

/// Checks the privilege and runs a function's body inside the guard. Every function returns a set through a tuplestore,
/// or void, so the result itself is always the empty Datum.
///
/// # Safety
///
/// Only for a call by Postgres of a version-1 function, and only directly in the `extern` function.
pub unsafe fn enter(fcinfo: pg_sys::FunctionCallInfo, check_access: fn(), body: fn(&Call)) -> pg_sys::Datum {
    let guarded = move || {
        check_access();
        body(&Call { fcinfo });
        pg_sys::Datum::null()
    };
    // SAFETY: the only frames above this one are Postgres's and that of the `extern` function, which has no
    // destructors.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(guarded) }
}

/// Defines the two symbols through which Postgres calls a function: `sql_function!("symbol" => body)`. Who may call it
/// is checked by [`super::access::require_read_all_stats`], or by another function after the body's name.
macro_rules! sql_function {
    ($symbol:literal => $body:path) => {
        $crate::pg::fmgr::sql_function!($symbol => $body, $crate::pg::access::require_read_all_stats);
    };
    ($symbol:literal => $body:path, $check_access:path) => {
        const _: () = {
            // SAFETY: no other function has this symbol.
            #[unsafe(export_name = concat!("pg_finfo_", $symbol))]
            extern "C" fn version_1_record() -> *const ::pgrx_pg_sys::Pg_finfo_record {
                &$crate::pg::fmgr::FINFO
            }

            // SAFETY: no other function has this symbol.
            #[unsafe(export_name = $symbol)]
            unsafe extern "C-unwind" fn function(fcinfo: ::pgrx_pg_sys::FunctionCallInfo) -> ::pgrx_pg_sys::Datum {
                // SAFETY: Postgres is the caller, and there is nothing else in this frame.
                unsafe { $crate::pg::fmgr::enter(fcinfo, $check_access, $body) }
            }
        };
    };
}
pub(crate) use sql_function;
