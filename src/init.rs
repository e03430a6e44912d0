//! What happens when a server loads the library.

use pgrx_pg_sys as pg_sys;

use crate::pg::settings;
use crate::proc::ptrace_access;
use crate::{guard, recorder, statements};

/// Called once in each process that loads the library.
// SAFETY: the name is the one that the server looks up, and no other object in this library has it.
#[unsafe(no_mangle)]
extern "C-unwind" fn _PG_init() {
    pg_sys::panic::register_pg_guard_panic_hook();
    // SAFETY: Postgres is the caller, and there is nothing else in this frame.
    unsafe { pg_sys::panic::pgrx_extern_c_guard(settings::define) };
    if settings::is_preloading() {
        if settings::set_ptracer() {
            ptrace_access::allow_descendants();
        }
        // SAFETY: as above.
        unsafe { pg_sys::panic::pgrx_extern_c_guard(statements::install) };
        // SAFETY: as above.
        unsafe { pg_sys::panic::pgrx_extern_c_guard(guard::install) };
        // SAFETY: as above.
        unsafe { pg_sys::panic::pgrx_extern_c_guard(recorder::install) };
    }
}
