//! Passes the extension's version from the control file to the code. Only the control file states it.

fn main() {
    println!("cargo:rerun-if-changed=pg_meminfo.control");
    let control = std::fs::read_to_string("pg_meminfo.control").expect("pg_meminfo.control is readable");
    let version = control
        .lines()
        .find_map(|line| line.strip_prefix("default_version = '")?.strip_suffix('\''))
        .expect("pg_meminfo.control has a default_version");
    let package = env!("CARGO_PKG_VERSION");
    assert_eq!(package, format!("{version}.0"), "the version in Cargo.toml is the control file's followed by .0");
    println!("cargo:rustc-env=PG_MEMINFO_VERSION={version}");
}
