//! The oracle: a list of rules, each of them complete. The first one that applies gives the category.

use super::super::maps::naive::NaiveHeader;
use super::{Category, Classifier, Header};

const PROGRAM: &str = "/usr/lib/postgresql/18/bin/postgres";
pub(in crate::proc) const IN_MAIN_SEGMENT: u64 = 0x7f00_0000_1000;

/// A classifier with the program and the main segment that the oracle assumes. Mappings in the fixtures match them.
pub(in crate::proc) fn classifier() -> Classifier {
    Classifier { program: PROGRAM.into(), in_main_segment: IN_MAIN_SEGMENT, system_v_key: 0x009b_c041 }
}

/// The classifier and the oracle agree on the category of every mapping in any text.
pub fn assert_agrees(text: &[u8]) {
    let classifier = classifier();
    for line in text.split(|&byte| byte == b'\n') {
        let latin1: String = line.iter().map(|&byte| byte as char).collect();
        if let (Some(header), Some(oracle)) = (Header::parse(line), NaiveHeader::parse(&latin1)) {
            assert_eq!(classifier.classify(&header), category(&oracle), "{latin1}");
        }
    }
}

pub(in crate::proc) fn category(header: &NaiveHeader) -> Category {
    let name = header.path.strip_suffix(" (deleted)").unwrap_or(&header.path);
    let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
    let permissions: Vec<char> = header.permissions.chars().collect();
    let (writable, executable, private) = (permissions[1] == 'w', permissions[2] == 'x', permissions[3] == 'p');
    let is_main = !private && header.range().is_some_and(|range| range.contains(&IN_MAIN_SEGMENT));
    let is_anonymous = private && (["", "/anon_hugepage"].contains(&name) || name.starts_with("[anon:"));
    let is_kernels = ["[vdso]", "[vsyscall]", "[vectors]", "[sigpage]", "[uprobes]"].contains(&name);
    let is_library = file.trim_end_matches(|c: char| c == '.' || c.is_ascii_digit()).ends_with(".so");
    let rules = [
        (is_main, Category::SharedMemory),
        (is_anonymous && executable, Category::Jit),
        (is_anonymous && writable, Category::Malloc),
        (is_anonymous, Category::Other),
        (name == "[heap]", Category::Malloc),
        (name.starts_with("[stack"), Category::Stack),
        (is_kernels || name.starts_with("[vvar"), Category::Kernel),
        (name == "/SYSV009bc041", Category::SharedMemory),
        (name.starts_with("/SYSV"), Category::DynamicSharedMemory),
        (name.starts_with("/dev/shm/PostgreSQL."), Category::DynamicSharedMemory),
        (directory.ends_with("/pg_dynshmem") && file.starts_with("mmap."), Category::DynamicSharedMemory),
        (name == "anon_inode:[io_uring]", Category::IoUring),
        (name == PROGRAM, Category::Program),
        (["/dev/zero", "/anon_hugepage"].contains(&name), Category::Other),
        (name.starts_with("/memfd:"), Category::Other),
        (!name.starts_with('/'), Category::Other),
        (is_library && (file.starts_with("libLLVM") || file.starts_with("llvmjit")), Category::Jit),
        (is_library, Category::Library),
        (true, Category::File),
    ];
    rules.into_iter().find(|(holds, _)| *holds).expect("the last rule always holds").1
}
