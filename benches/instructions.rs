//! Runs the smaps tokenizer a number of times and nothing else, for callgrind to count its instructions. The count is
//! the same in every run, which times on a shared machine are not.
//!
//! Arguments: a file and the number of runs. Prints the number of mappings in the file.

use std::hint::black_box;
use std::{env, fs};

use pg_meminfo::proc::smaps;

fn main() {
    let mut arguments = env::args().skip(1);
    let path = arguments.next().expect("a file is given");
    let times: u32 = arguments.next().and_then(|times| times.parse().ok()).expect("a number is given");
    let text = fs::read(path).expect("the file is readable");
    let mut mappings = 0;
    for _ in 0..times {
        mappings = smaps::mappings(black_box(&text)).map(black_box).filter(Result::is_ok).count();
    }
    println!("{mappings}");
}
