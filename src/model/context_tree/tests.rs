use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::arena::{Arena, BASE, LAYOUT};
use super::naive::{assert_agrees, seen};
use super::*;

const LIMITS: Limits = Limits { contexts: 1_000_000, passes: 5, one_by_one: 32 };

fn read(arena: &mut Arena) -> Outcome {
    read_tree(arena, &LAYOUT, LIMITS, &mut || (), &mut |_| true).unwrap()
}

fn found(arena: &mut Arena) -> Tree {
    match read(arena) {
        Outcome::Found(tree, 1) => tree,
        outcome => panic!("{outcome:?}"),
    }
}

/// A root with two children, of which the second has a child.
fn small() -> Arena {
    small_in(Arena::new())
}

fn small_in(mut arena: Arena) -> Arena {
    let [top, cache, plan, ident] =
        ["TopMemoryContext", "CacheMemoryContext", "CachedPlan", "select 1"].map(|text| arena.text(text));
    let root = arena.add(0, 0, top, 0, 1000);
    let cache = arena.add(root, 0, cache, 0, 200);
    arena.add(root, 1, 0, 0, 30);
    arena.add(cache, 0, plan, ident, 4);
    arena
}

#[test]
fn a_small_tree() {
    let mut arena = small();
    let tree = found(&mut arena);
    let rows: Vec<_> = tree
        .contexts
        .iter()
        .map(|context| {
            let text = |text: Option<&[u8]>| text.map(|text| String::from_utf8(text.to_vec()).unwrap());
            let (name, ident) = (text(tree.name(context)), text(tree.ident(context)));
            (context.parent, context.level, context.type_name, name, ident, context.total, context.tree_total)
        })
        .collect();
    let name = |name: &str| Some(name.to_string());
    assert_eq!(
        rows,
        [
            (None, 1, "AllocSet", name("TopMemoryContext"), None, 1000, 1234),
            (Some(0), 2, "Generation", None, None, 30, 30),
            (Some(0), 2, "AllocSet", name("CacheMemoryContext"), None, 200, 204),
            (Some(2), 3, "AllocSet", name("CachedPlan"), name("select 1"), 4, 4),
        ]
    );
    // The root's pointer, root, children, grandchild and two rounds of texts, then the three again.
    assert!(arena.reads <= 9, "{}", arena.reads);
    assert_agrees(&mut arena, &LAYOUT);
}

#[test]
fn damaged_links() {
    let (root, cache, plan) = (0, 1, 3);
    for (node, field, to) in [
        // Cycles: to itself, to the parent, to a sibling.
        (cache, offset::FIRST_CHILD, Some(cache)),
        (plan, offset::FIRST_CHILD, Some(root)),
        (plan, offset::NEXT, Some(cache)),
        (root, offset::FIRST_CHILD, Some(root)),
        (root, offset::NEXT, Some(plan)),
        // Links that the other side does not have.
        (plan, offset::PARENT, Some(root)),
        (plan, offset::PARENT, None),
        (cache, offset::PREVIOUS, Some(plan)),
        (cache, offset::PREVIOUS, None),
        (root, offset::PARENT, Some(cache)),
        (root, offset::PREVIOUS, Some(cache)),
    ] {
        let mut arena = small();
        let to = to.map_or(0, |to: usize| arena.nodes[to]);
        arena.set(arena.nodes[node] + field as u64, to);
        assert!(matches!(read(&mut arena), Outcome::KeptChanging(5)), "{node} {field} {to}");
        assert_agrees(&mut arena, &LAYOUT);
    }
}

#[test]
fn what_is_no_context() {
    for (field, value) in [
        (offset::TAG, 224),
        (offset::METHODS, LAYOUT.types[1].methods),
        (offset::METHODS, 0),
        (offset::FIRST_CHILD, 3),
        (offset::FIRST_CHILD, BASE + 1_000_000),
        (offset::FIRST_CHILD, u64::MAX - 7),
        (offset::NAME, 3),
        (offset::IDENT, u64::MAX),
    ] {
        let mut arena = small();
        arena.set(arena.nodes[1] + field as u64, value);
        assert!(matches!(read(&mut arena), Outcome::KeptChanging(5)), "{field} {value}");
        assert_agrees(&mut arena, &LAYOUT);
    }
    // A context that is not aligned, although everything else is right.
    let mut arena = small();
    let plan = arena.nodes[3];
    let bytes = arena.bytes[(plan - BASE) as usize..].to_vec();
    arena.bytes.resize(arena.bytes.len() + 4, 0);
    let moved = BASE + arena.bytes.len() as u64;
    arena.bytes.extend_from_slice(&bytes);
    arena.set(arena.nodes[1] + offset::FIRST_CHILD as u64, moved);
    assert!(matches!(read(&mut arena), Outcome::KeptChanging(5)));
}

#[test]
fn a_root_that_is_not_there() {
    for root in [0, 3, BASE + 1_000_000, u64::MAX - 7] {
        let mut arena = small();
        arena.set(LAYOUT.root, root);
        assert!(matches!(read(&mut arena), Outcome::KeptChanging(5)));
    }
    let layout = Layout { root: 8, ..LAYOUT };
    let outcome = read_tree(&mut small(), &layout, LIMITS, &mut || (), &mut |_| true).unwrap();
    assert!(matches!(outcome, Outcome::KeptChanging(5)));
}

#[test]
fn a_hole_at_each_piece() {
    let mut whole = small_in(Arena { alignment: PAGE as usize, ..Arena::new() });
    found(&mut whole);
    for at in (BASE..BASE + whole.bytes.len() as u64).step_by(PAGE as usize) {
        let mut arena = whole.clone();
        arena.holes.push(at);
        assert!(matches!(read(&mut arena), Outcome::KeptChanging(5)), "{at}");
        assert_agrees(&mut arena, &LAYOUT);
    }
}

/// An arena with one context, whose identifier has this length and begins so far before the end of a page.
fn with_ident(length: usize, before_end: usize) -> Arena {
    let mut arena = Arena::new();
    let name = arena.text("TopMemoryContext");
    let root = arena.add(0, 0, name, 0, 1);
    arena.bytes.resize(2 * PAGE as usize - before_end, 0);
    let ident = arena.bytes.len() as u64 + BASE;
    arena.bytes.extend_from_slice(&[b'x'].repeat(length));
    arena.bytes.push(0);
    arena.set(root + offset::IDENT as u64, ident);
    arena
}

#[test]
fn texts_of_all_lengths_on_both_sides_of_a_page() {
    for length in [0, 1, 63, 126, 127, 128, 129, 500, 1021, 1022, 1023, 1024, 1025, 5000] {
        for before_end in [1, 2, 100, 127, 128, 129, 1000, 1023, 1024, 1025, 4000] {
            let mut arena = with_ident(length, before_end);
            let tree = found(&mut arena);
            assert_eq!(tree.ident(&tree.contexts[0]).unwrap().len(), length.min(MAX_TEXT));
            assert_agrees(&mut arena, &LAYOUT);
        }
    }
}

#[test]
fn a_text_that_runs_into_a_hole() {
    for length in [0, 1, 99, 100, 101, 200, 1023, 1024, 2000] {
        let mut arena = with_ident(length, 100);
        let ident = arena.get(arena.nodes[0] + offset::IDENT as u64);
        arena.holes.push(ident + 100);
        assert_eq!(matches!(read(&mut arena), Outcome::Found(..)), length < 100, "{length}");
        assert_agrees(&mut arena, &LAYOUT);
        // What is behind a hole is not taken for the beginning.
        arena.holes = vec![ident];
        assert!(matches!(read(&mut arena), Outcome::KeptChanging(_)));
        assert_agrees(&mut arena, &LAYOUT);
    }
}

#[test]
fn as_many_contexts_as_the_limit_allows() {
    let mut arena = small();
    let read = |arena: &mut Arena, contexts| {
        read_tree(arena, &LAYOUT, Limits { contexts, ..LIMITS }, &mut || (), &mut |_| true).unwrap()
    };
    assert!(matches!(read(&mut arena, 4), Outcome::Found(..)));
    assert!(matches!(read(&mut arena, 3), Outcome::TooMany));
    assert!(matches!(read(&mut arena, 0), Outcome::TooMany));
}

#[test]
fn a_million_siblings() {
    let mut arena = Arena::new();
    let name = arena.text("CachedPlan");
    let root = arena.add(0, 0, name, 0, 1);
    for _ in 1..1_000_000 {
        arena.add(root, 0, name, 0, 1);
    }
    let tree = found(&mut arena);
    assert_eq!((tree.contexts.len(), tree.contexts[0].tree_total), (1_000_000, 1_000_000));
    assert!(tree.contexts[1..].iter().all(|context| context.parent == Some(0) && context.level == 2));
    arena.add(root, 0, name, 0, 1);
    assert!(matches!(read(&mut arena), Outcome::TooMany));
}

#[test]
fn a_hundred_thousand_levels() {
    let mut arena = Arena::new();
    let name = arena.text("ExprContext");
    (0..100_000).fold(0, |parent, _| arena.add(parent, 0, name, 0, 1));
    let tree = found(&mut arena);
    assert_eq!(tree.contexts.len(), 100_000);
    assert_eq!(tree.contexts.last().unwrap().level, 100_000);
    assert_agrees(&mut arena, &LAYOUT);
}

#[test]
fn a_wide_tree_is_read_in_few_reads() {
    let mut arena = Arena::new();
    let name = arena.text("name");
    let root = arena.add(0, 0, name, 0, 1);
    // Ten levels, each context with two children.
    let mut level = vec![root];
    for _ in 0..10 {
        level = level.iter().flat_map(|&parent| [0, 0].map(|_| arena.add(parent, 0, name, 0, 1))).collect();
    }
    let tree = found(&mut arena);
    assert_eq!(tree.contexts.len(), 2047);
    assert!(arena.reads < 40, "{}", arena.reads);
}

/// A list of as many contexts, of which each has a child, at these distances. Returns how many reads it takes.
fn reads_of_a_list(count: usize, alignment: usize, holes: &[u64]) -> usize {
    let mut arena = Arena { alignment, ..Arena::new() };
    arena.append_room();
    let name = arena.text("CachedPlanSource");
    let root = arena.add(0, 0, name, 0, 1);
    for _ in 0..count {
        let parent = arena.add(root, 0, name, 0, 1);
        arena.add(parent, 0, name, 0, 1);
    }
    arena.append_room();
    arena.holes.extend(holes.iter().map(|at| BASE + at));
    assert_eq!(found(&mut arena).contexts.len(), 2 * count + 1);
    arena.reads
}

#[test]
fn a_long_list_is_read_in_few_reads() {
    let reads = reads_of_a_list(5000, 2048, &[]);
    assert!(reads < 1000, "{reads}");
}

#[test]
fn reading_ahead_in_vain_takes_few_reads() {
    // The contexts are too far from each other, or too near to what cannot be read.
    let holes: Vec<u64> = (1..).map(|page| page * 32 * 1024 + 16 * 1024).take(5000).collect();
    for (alignment, holes) in [(2 * ahead::LENGTH, &[][..]), (32 * 1024, &holes)] {
        let reads = reads_of_a_list(500, alignment, holes);
        assert!((500..600).contains(&reads), "{reads}");
    }
}

/// A memory in which a change happens just before a certain read.
struct ChangesOnce<F> {
    arena: Arena,
    at: usize,
    change: Option<F>,
}

impl<F: FnOnce(&mut Arena)> Memory for ChangesOnce<F> {
    type Error = std::convert::Infallible;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Self::Error> {
        if self.arena.reads == self.at
            && let Some(change) = self.change.take()
        {
            change(&mut self.arena);
        }
        self.arena.read(pieces, buffer)
    }
}

/// A memory that counts how often a piece at an address is read.
struct Counts(Arena, HashMap<u64, usize>);

impl Memory for Counts {
    type Error = std::convert::Infallible;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Self::Error> {
        for piece in pieces {
            *self.1.entry(piece.address).or_insert(0) += 1;
        }
        self.0.read(pieces, buffer)
    }
}

#[test]
fn everything_is_read_twice() {
    for ident in ["", "x"] {
        let mut arena = small();
        let ident = arena.text(ident);
        arena.set(arena.nodes[3] + offset::IDENT as u64, ident);
        let fields = [offset::NAME, offset::IDENT].map(|field| field as u64);
        let texts = arena.nodes.iter().flat_map(|node| fields.map(|field| arena.get(node + field)));
        let parts: Vec<u64> =
            texts.chain(arena.nodes.clone()).chain([LAYOUT.root]).filter(|&address| address != 0).collect();
        let mut memory = Counts(arena, HashMap::new());
        let outcome = read_tree(&mut memory, &LAYOUT, LIMITS, &mut || (), &mut |_| true).unwrap();
        assert!(matches!(outcome, Outcome::Found(_, 1)));
        for part in parts {
            assert!(memory.1[&part] >= 2, "{ident:x} {part:x}: {:x?}", memory.1);
        }
    }
}

#[test]
fn one_change_before_any_read() {
    type Change = fn(&mut Arena);
    let changes: [(&str, Change); 6] = [
        ("a new child", |arena| {
            let name = arena.text("new");
            arena.add(arena.nodes[0], 0, name, 0, 5);
        }),
        ("a new grandchild", |arena| {
            let name = arena.text("new");
            arena.add(arena.nodes[2], 0, name, 0, 5);
        }),
        ("another text at the same place", |arena| {
            let ident = arena.get(arena.nodes[3] + offset::IDENT as u64);
            let at = (ident - BASE) as usize;
            arena.bytes[at..at + 8].copy_from_slice(b"select 2");
        }),
        ("another text elsewhere", |arena| {
            let ident = arena.text("select 3");
            arena.set(arena.nodes[3] + offset::IDENT as u64, ident);
        }),
        ("a child less", |arena| {
            arena.set(arena.nodes[1] + offset::FIRST_CHILD as u64, 0);
            arena.set(arena.nodes[3] + offset::TAG as u64, 0x7f7f_7f7f);
        }),
        ("another root", |arena| {
            let name = arena.text("top");
            arena.add(0, 0, name, 0, 7);
        }),
    ];
    for (name, change) in changes {
        let [before, after] = [false, true].map(|is_after| {
            let mut arena = small();
            if is_after {
                change(&mut arena);
            }
            seen(&found(&mut arena))
        });
        let reads = {
            let mut arena = small();
            found(&mut arena);
            arena.reads
        };
        let mut passes = HashMap::new();
        for at in 0..reads {
            let mut memory = ChangesOnce { arena: small(), at, change: Some(change) };
            let Outcome::Found(tree, pass) =
                read_tree(&mut memory, &LAYOUT, LIMITS, &mut || (), &mut |_| true).unwrap()
            else {
                panic!("{name} before read {at}")
            };
            let tree = seen(&tree);
            assert!(tree == before || tree == after, "{name} before read {at}: {tree:?}");
            // Only in the last reads, after the last of the bytes that change, can the old tree be returned.
            *passes.entry(pass).or_insert(0) += 1;
        }
        assert!(passes.contains_key(&1) && passes.contains_key(&2), "{name}: {passes:?}");
        assert!(passes.keys().all(|&pass| pass <= 3), "{name}: {passes:?}");
    }
}

#[test]
fn the_size_is_that_of_the_second_read() {
    let reads = {
        let mut arena = small();
        found(&mut arena);
        arena.reads
    };
    let grow = |arena: &mut Arena| arena.set(arena.nodes[1] + offset::ALLOCATED as u64, 999);
    // The last two reads are those of contexts and texts.
    let mut memory = ChangesOnce { arena: small(), at: reads - 2, change: Some(grow) };
    let Outcome::Found(tree, 1) = read_tree(&mut memory, &LAYOUT, LIMITS, &mut || (), &mut |_| true).unwrap() else {
        panic!("a size is no reason for another pass")
    };
    assert_eq!(tree.contexts[2].total, 999);
    assert_eq!(tree.contexts[0].tree_total, 1000 + 999 + 30 + 4);
}

#[test]
fn limits_of_passes_and_time() {
    let mut arena = small();
    arena.set(arena.nodes[3] + offset::PARENT as u64, 0);
    let mut asked = 0;
    let mut may_continue = |_| {
        asked += 1;
        asked < 3
    };
    let outcome = read_tree(&mut arena, &LAYOUT, LIMITS, &mut || (), &mut may_continue).unwrap();
    assert!(matches!(outcome, Outcome::KeptChanging(3)), "{outcome:?}");
    // However little time there is, there is one pass.
    assert!(matches!(read_tree(&mut small(), &LAYOUT, LIMITS, &mut || (), &mut |_| false), Ok(Outcome::Found(_, 1))));
}

#[test]
fn an_interrupt_at_each_read() {
    for at in 0.. {
        let (mut arena, mut pauses) = (small(), 0);
        let mut pause = || {
            assert!(pauses < at, "interrupted");
            pauses += 1;
        };
        let result =
            catch_unwind(AssertUnwindSafe(|| read_tree(&mut arena, &LAYOUT, LIMITS, &mut pause, &mut |_| true)));
        if result.is_ok() {
            assert!(at > 5);
            return;
        }
        assert_eq!(arena.reads, at);
    }
}

/// A process that exits after some reads.
struct Exits(Arena, usize);

impl Memory for Exits {
    type Error = &'static str;

    fn read(&mut self, pieces: &[Piece], buffer: &mut [u8]) -> Result<usize, Self::Error> {
        if self.0.reads == self.1 {
            return Err("gone");
        }
        Ok(self.0.read(pieces, buffer).unwrap())
    }
}

#[test]
fn an_exit_at_each_read() {
    for at in 0.. {
        match read_tree(&mut Exits(small(), at), &LAYOUT, LIMITS, &mut || (), &mut |_| true) {
            Ok(_) => {
                assert!(at > 5);
                return;
            }
            Err(failure) => assert_eq!(failure, Failure::Memory("gone")),
        }
    }
}

/// What is wrong with a tree: the node, the field and the node to which it then points, or any number.
fn damage() -> impl Strategy<Value = (usize, usize, u64)> {
    (any::<usize>(), 0..offset::SIZE / 8, prop_oneof![0..64u64, any::<u64>()])
}

proptest! {
    #[test]
    fn trees_agree_with_the_oracle(
        contexts in prop::collection::vec((any::<prop::sample::Index>(), 0..2usize, "[ -~]{0,200}", any::<u64>()), 1..60),
        damages in prop::collection::vec(damage(), 0..3),
        hole in prop::option::of(0..20_000u64),
        has_room in any::<bool>(),
    ) {
        let mut arena = Arena::new();
        if has_room {
            arena.append_room();
        }
        for (parent, context_type, text, total) in contexts {
            let parent = if arena.nodes.is_empty() { 0 } else { arena.nodes[parent.index(arena.nodes.len())] };
            let name = arena.text(&text);
            let ident = if total % 3 == 0 { 0 } else { arena.text(&text[text.len() / 2..]) };
            arena.add(parent, context_type, name, ident, total);
        }
        if has_room {
            arena.append_room();
        }
        for (node, field, value) in damages {
            let to = *arena.nodes.get(value as usize).unwrap_or(&value);
            arena.set(arena.nodes[node % arena.nodes.len()] + 8 * field as u64, to);
        }
        let room = if has_room { ahead::LENGTH as u64 } else { 0 };
        arena.holes.extend(hole.map(|at| BASE + room + at));
        assert_agrees(&mut arena, &LAYOUT);
    }
}
