//! What categories need to know of this server.

use std::fs;
use std::os::unix::ffi::OsStringExt;

use crate::pg::shared_memory;
use crate::proc::category::Landmarks;

/// Where this server's main segment of shared memory and its program are.
pub fn find() -> Landmarks {
    let program = fs::read_link("/proc/self/exe").unwrap_or_default().into_os_string().into_vec();
    Landmarks {
        // After an upgrade the program that still runs is a deleted file.
        program: program.strip_suffix(b" (deleted)").unwrap_or(&program).to_vec(),
        in_main_segment: shared_memory::an_address(),
        system_v_key: shared_memory::system_v_key(),
    }
}
