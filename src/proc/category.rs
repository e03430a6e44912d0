//! What a mapping is for: allocations of malloc, a stack, compiled code, shared memory, a file.
//!
//! In most cases the mapping's name and permissions show that. For shared memory they do not: every System V segment is
//! `/SYSV… (deleted)`, and all shared anonymous memory is `/dev/zero (deleted)`. So the caller says where the main
//! segment is ([`Classifier`]).

use memchr::memrchr;

use super::maps::Header;

/// Declares the categories, each with its name in SQL.
macro_rules! categories {
    ($($(#[$doc:meta])* $category:ident => $name:literal,)*) => {
        /// What a mapping is for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Category {
            $($(#[$doc])* $category,)*
        }

        impl Category {
            /// All categories. The position of a category is its number.
            pub const ALL: [Category; [$($name),*].len()] = [$(Category::$category),*];

            /// The name in SQL.
            pub fn name(self) -> &'static str {
                match self {
                    $(Category::$category => $name,)*
                }
            }
        }
    };
}

categories! {
    /// The heap, and all other private anonymous memory that is writable.
    Malloc => "malloc",
    /// A stack.
    Stack => "stack",
    /// Code that was compiled at run time, and the libraries of LLVM, the compiler.
    Jit => "jit",
    /// The main shared memory segment, of any type.
    SharedMemory => "shared_memory",
    /// A dynamic shared memory segment.
    DynamicSharedMemory => "dynamic_shared_memory",
    /// The rings of io_uring.
    IoUring => "io_uring",
    /// The executable.
    Program => "program",
    /// A shared library.
    Library => "library",
    /// Any other file.
    File => "file",
    /// Mappings that the kernel adds to every process.
    Kernel => "kernel",
    /// Anything else, including anonymous memory that is not writable.
    Other => "other",
}

impl Category {
    /// The number of categories.
    pub const COUNT: usize = Self::ALL.len();
}

/// Determines the category of a mapping in any process of one cluster. The main segment has the same address in all of
/// them.
#[derive(Clone, Debug)]
pub struct Classifier {
    /// The path of the executable.
    pub program: Vec<u8>,
    /// An address in the main segment.
    pub in_main_segment: u64,
    /// The key of a System V segment: the main segment itself, or the small one that guards the data directory.
    pub system_v_key: u32,
}

impl Classifier {
    /// The category of a mapping.
    pub fn classify(&self, mapping: &Header<'_>) -> Category {
        let is_private = mapping.permissions.ends_with(b"p");
        let may_write = mapping.permissions[1] == b'w';
        let may_execute = mapping.permissions[2] == b'x';
        let path = mapping.path.strip_suffix(b" (deleted)").unwrap_or(mapping.path);
        let file = &path[memrchr(b'/', path).map_or(0, |slash| slash + 1)..];
        let anonymous = match (may_write, may_execute) {
            (_, true) => Category::Jit,
            (true, false) => Category::Malloc,
            (false, false) => Category::Other,
        };

        if !is_private && mapping.contains(self.in_main_segment) {
            return Category::SharedMemory;
        }
        match path {
            // On explicit huge pages, as malloc uses them if glibc.malloc.hugetlb is 2, it has a name.
            b"" | b"/anon_hugepage" if is_private => anonymous,
            b"[heap]" => Category::Malloc,
            _ if path.starts_with(b"[anon:") && is_private => anonymous,
            _ if path.starts_with(b"[stack") => Category::Stack,
            b"[vdso]" | b"[vsyscall]" | b"[vectors]" | b"[sigpage]" | b"[uprobes]" => Category::Kernel,
            _ if path.starts_with(b"[vvar") => Category::Kernel,
            _ if path.starts_with(b"/SYSV") => {
                // The kernel names a System V segment after its key.
                if path == format!("/SYSV{:08x}", self.system_v_key).as_bytes() {
                    Category::SharedMemory
                } else {
                    Category::DynamicSharedMemory
                }
            }
            _ if path.starts_with(b"/dev/shm/PostgreSQL.") => Category::DynamicSharedMemory,
            _ if file.starts_with(b"mmap.") && path[..path.len() - file.len()].ends_with(b"/pg_dynshmem/") => {
                Category::DynamicSharedMemory
            }
            b"anon_inode:[io_uring]" => Category::IoUring,
            _ if path == self.program => Category::Program,
            // Other shared anonymous memory, on normal or huge pages.
            b"/dev/zero" | b"/anon_hugepage" => Category::Other,
            _ if path.starts_with(b"/memfd:") || !path.starts_with(b"/") => Category::Other,
            _ if is_library(file) => {
                if file.starts_with(b"libLLVM") || file.starts_with(b"llvmjit") {
                    Category::Jit
                } else {
                    Category::Library
                }
            }
            _ => Category::File,
        }
    }
}

/// Whether a file's name ends in `.so`, or in `.so.` and a version.
fn is_library(file: &[u8]) -> bool {
    let is_of_version = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let name = file.iter().rposition(|byte| !is_of_version(byte)).map_or(0, |last| last + 1);
    file[..name].ends_with(b".so")
}

#[cfg(any(test, feature = "oracle"))]
pub mod naive;

#[cfg(test)]
mod tests {
    use super::*;

    /// The category of a mapping in a process whose main segment contains address 7f0000001000 and whose System V
    /// segment has the key 009bc041.
    fn category(permissions: &str, path: &str) -> &'static str {
        at("7e0000000000-7e0000001000", permissions, path)
    }

    fn at(range: &str, permissions: &str, path: &str) -> &'static str {
        let classifier = Classifier {
            program: b"/usr/lib/postgresql/18/bin/postgres".to_vec(),
            in_main_segment: 0x7f00_0000_1000,
            system_v_key: 0x9b_c041,
        };
        let line = format!("{range} {permissions} 00000000 00:01 4711                          {path}");
        classifier.classify(&Header::parse(line.as_bytes()).unwrap()).name()
    }

    #[test]
    fn names_of_mappings_in_postgres_processes() {
        for (permissions, path, expected) in [
            ("rw-p", "", "malloc"),
            ("r--p", "", "other"),
            ("---p", "", "other"),
            ("r-xp", "", "jit"),
            ("rwxp", "", "jit"),
            ("rw-p", "[heap]", "malloc"),
            ("rw-p", "[stack]", "stack"),
            ("rw-p", "[stack:12]", "stack"),
            ("r-xp", "[vdso]", "kernel"),
            ("r--p", "[vvar]", "kernel"),
            ("r--p", "[vvar_vclock]", "kernel"),
            ("--xp", "[vsyscall]", "kernel"),
            ("rw-s", "/dev/zero (deleted)", "other"),
            ("rw-s", "/anon_hugepage (deleted)", "other"),
            ("rw-p", "/anon_hugepage (deleted)", "malloc"),
            ("rwxp", "/anon_hugepage (deleted)", "jit"),
            ("---p", "/anon_hugepage (deleted)", "other"),
            ("rw-s", "/SYSV009bc041 (deleted)", "shared_memory"),
            ("rw-s", "/SYSV7d2a4c11 (deleted)", "dynamic_shared_memory"),
            ("rw-s", "/SYSV00000000 (deleted)", "dynamic_shared_memory"),
            ("rw-s", "/dev/shm/PostgreSQL.2512468374", "dynamic_shared_memory"),
            ("rw-s", "/dev/shm/PostgreSQL.2512468374 (deleted)", "dynamic_shared_memory"),
            ("rw-s", "/var/lib/postgresql/18/main/pg_dynshmem/mmap.3024829334", "dynamic_shared_memory"),
            ("rw-s", "anon_inode:[io_uring]", "io_uring"),
            ("rw-p", "[anon:NAME]", "malloc"),
            ("---p", "[anon:NAME]", "other"),
            ("rw-p", "[anon: glibc: malloc arena]", "malloc"),
            ("rw-s", "[anon_shmem:NAME]", "other"),
            ("rw-s", "/memfd:foo bar (deleted)", "other"),
            ("r-xp", "/usr/lib/postgresql/18/bin/postgres", "program"),
            ("r-xp", "/usr/lib/postgresql/18/bin/postgres (deleted)", "program"),
            ("r-xp", "/usr/lib/x86_64-linux-gnu/libc.so.6", "library"),
            ("r-xp", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.33 (deleted)", "library"),
            ("r-xp", "/usr/lib/postgresql/18/lib/pg_meminfo.so", "library"),
            ("r-xp", "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "library"),
            ("r-xp", "/usr/lib/x86_64-linux-gnu/libLLVM-19.so.1", "jit"),
            ("r-xp", "/usr/lib/postgresql/18/lib/llvmjit.so", "jit"),
            ("r--p", "/usr/lib/locale/locale-archive", "file"),
            ("r--p", "/var/lib/a.sock/mmap.1", "file"),
            ("r--p", "/a.so.old", "file"),
            ("rw-s", "/var/lib/postgresql/pg_dynshmem.old/mmap.1", "file"),
        ] {
            assert_eq!(category(permissions, path), expected, "{permissions} {path}");
        }
    }

    #[test]
    fn the_main_segment_in_each_of_its_forms() {
        let around = "7f0000000000-7f0010000000";
        for path in ["/dev/zero (deleted)", "/anon_hugepage (deleted)", "/SYSV7d2a4c11 (deleted)"] {
            assert_eq!(at(around, "rw-s", path), "shared_memory", "{path}");
        }
        // First, the address is the end address, which is exclusive; then it is the start address.
        assert_eq!(at("7f0000000000-7f0000001000", "rw-s", "/dev/zero (deleted)"), "other");
        assert_eq!(at("7f0000001000-7f0000002000", "rw-s", "/dev/zero (deleted)"), "shared_memory");
    }

    #[test]
    fn every_category_is_listed_once() {
        let mut names = Category::ALL.map(Category::name).to_vec();
        assert!(Category::ALL.iter().enumerate().all(|(at, &category)| category as usize == at));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Category::COUNT);
    }
}
