//! A ring of records in a file: when it is full, the oldest go.
//!
//! # Format
//!
//! The file consists of blocks. The first holds a [`Header`]. Every other block starts with its sequence number, the
//! time of its first record, and whether it is known that no record of the block before is later than that: the clock
//! may have been set back. Then it has records, each with its length and a checksum. A new block is written as a
//! whole, over the oldest one; further records are appended to it, one write each. So a writer that is killed can spoil
//! only the record that it is writing. The checksum of a record depends on the block's sequence number: what is left of
//! an older block is never taken for a part of a newer one.
//!
//! One process writes; others read at any time, without a lock. A record that a reader finds incomplete is read once
//! more, and then left out. Nothing is flushed to disk: only a crash of the machine loses records, and the kernel
//! writes them anyway after half a minute.
//!
//! Numbers are little-endian.

use std::collections::TryReserveError;
use std::io;

/// The size of a block.
pub const BLOCK: usize = 8192;

/// The length of a block's own header: its checksum, whether it follows the block before in time, its sequence number,
/// and the time of its first record.
const BLOCK_HEADER: usize = 24;

/// The length of what stands before a record: its length and checksum.
const RECORD_HEADER: usize = 8;

/// The longest record.
pub const MAX_RECORD: usize = BLOCK - BLOCK_HEADER - RECORD_HEADER;

/// The version of this format, and of what is in the records. Postcard writes the fields of a record one after the
/// other, without their names, and a [`Cause`](super::incident::Cause) as its index. So any change of a `Sample`, a
/// `Session` or an `Incident` is a new version, for which the old files are set aside; their tests compare the bytes.
const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"pgmemhis";

/// Bytes that can be read and written at an offset.
pub trait Storage {
    /// Reads all of `bytes`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Storage for std::fs::File {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, bytes, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
}

impl<S: Storage> Storage for &S {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        S::read(self, offset, bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        S::write(self, offset, bytes)
    }
}

/// Why a file cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// It is no such file, or of another version.
    Foreign,
    /// It is damaged, or shorter than it says.
    Damaged,
    /// It cannot be read.
    Io(io::Error),
    /// There is not enough memory to read it.
    OutOfMemory,
}

impl From<TryReserveError> for Unusable {
    fn from(_: TryReserveError) -> Self {
        Unusable::OutOfMemory
    }
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Unusable::Damaged,
            _ => Unusable::Io(error),
        }
    }
}

/// What the first block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of blocks after the first.
    pub blocks: u32,
    /// What identifies the cluster.
    pub cluster: u64,
}

impl Header {
    /// The number of blocks that a file of this size has.
    pub fn for_size(size: u64, cluster: u64) -> Self {
        Header { blocks: (size / BLOCK as u64).saturating_sub(1).clamp(2, u64::from(u32::MAX)) as u32, cluster }
    }

    /// The size of the file, in bytes.
    pub fn size(self) -> u64 {
        (u64::from(self.blocks) + 1) * BLOCK as u64
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(BLOCK as u32).to_le_bytes());
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&self.cluster.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Reads it.
    pub fn read(storage: &impl Storage) -> Result<Self, Unusable> {
        let mut bytes = [0; 32];
        storage.read(0, &mut bytes)?;
        if bytes[..8] != *MAGIC || number(&bytes[8..]) != VERSION || number(&bytes[12..]) != BLOCK as u32 {
            return Err(Unusable::Foreign);
        }
        if crc32fast::hash(&bytes[..28]) != number(&bytes[28..]) {
            return Err(Unusable::Damaged);
        }
        let header = Header { blocks: number(&bytes[16..]), cluster: long(&bytes[20..]) };
        // The last block must be there.
        storage.read(header.size() - 1, &mut [0])?;
        if header.blocks < 2 { Err(Unusable::Damaged) } else { Ok(header) }
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(*bytes.first_chunk().expect("the callers pass enough"))
}

fn long(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("the callers pass enough"))
}

/// What a block's own header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// Not 0.
    sequence: u64,
    first_at: i64,
    /// It is known that no record of the block before is later than the first of this one.
    follows: bool,
}

impl Block {
    fn encode(self) -> [u8; BLOCK_HEADER] {
        let mut bytes = [0; BLOCK_HEADER];
        bytes[4] = self.follows.into();
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.first_at.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `None` if nothing has been written there, or not all of it.
    fn decode(bytes: &[u8; BLOCK_HEADER]) -> Option<Self> {
        let (sequence, first_at) = (long(&bytes[8..]), long(&bytes[16..]) as i64);
        let block = Block { sequence, first_at, follows: bytes[4] != 0 };
        (block.sequence != 0 && block.encode() == *bytes).then_some(block)
    }

    fn offset(self, header: Header) -> u64 {
        offset_of(self.sequence % u64::from(header.blocks))
    }
}

/// Where a block begins. The first after the header is 0.
fn offset_of(number: u64) -> u64 {
    (number + 1) * BLOCK as u64
}

fn checksum(sequence: u64, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(record);
    hasher.finalize()
}

/// The writer of a ring.
#[derive(Debug)]
pub struct Ring<S> {
    storage: S,
    header: Header,
    /// The sequence number of the block that is being filled.
    sequence: u64,
    /// How much of it is used. All of it if a new one is to be started.
    used: usize,
    /// The time of the last record. `None` if it is unknown.
    last_at: Option<i64>,
}

impl<S: Storage> Ring<S> {
    /// Makes a new ring of storage that is all zeros.
    pub fn create(storage: S, header: Header) -> io::Result<Self> {
        storage.write(0, &header.encode())?;
        Ok(Ring { storage, header, sequence: 0, used: BLOCK, last_at: None })
    }

    /// Goes on with a ring.
    pub fn open(storage: S) -> Result<Self, Unusable> {
        let header = Header::read(&storage)?;
        let sequence = written(&storage, header, || {}).map(|block| block.sequence).max().unwrap_or(0);
        Ok(Ring { storage, header, sequence, used: BLOCK, last_at: None })
    }

    /// What the first block says.
    pub fn header(&self) -> Header {
        self.header
    }

    /// Adds a record, unless it is empty or too long.
    pub fn append(&mut self, at: i64, record: &[u8]) -> io::Result<()> {
        if record.is_empty() || record.len() > MAX_RECORD {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = RECORD_HEADER + record.len();
        // Within a block, time does not go back.
        let needs_block = self.used + length > BLOCK || self.last_at.is_some_and(|last_at| at < last_at);
        let next = || self.sequence.checked_add(1).ok_or(io::ErrorKind::InvalidData);
        let sequence = if needs_block { next()? } else { self.sequence };
        let follows = self.last_at.is_some_and(|last_at| at >= last_at);
        self.last_at = Some(at);
        let block = Block { sequence, first_at: at, follows };
        let mut bytes = [0; BLOCK];
        let start = if needs_block {
            bytes[..BLOCK_HEADER].copy_from_slice(&block.encode());
            BLOCK_HEADER
        } else {
            0
        };
        bytes[start..start + 4].copy_from_slice(&(record.len() as u32).to_le_bytes());
        bytes[start + 4..start + 8].copy_from_slice(&checksum(sequence, record).to_le_bytes());
        bytes[start + 8..start + length].copy_from_slice(record);
        if needs_block {
            // If this fails, the next one starts it anew.
            self.used = BLOCK;
            self.sequence = sequence;
            self.storage.write(block.offset(self.header), &bytes)?;
            self.used = start + length;
        } else {
            let offset = block.offset(self.header) + self.used as u64;
            self.used += length;
            self.storage.write(offset, &bytes[..length])?;
        }
        Ok(())
    }

    /// Adds the records of another ring, as many as there is room for. Each new block has those of one old block, for
    /// only the time of the first of them is known.
    pub fn copy(&mut self, old: &Ring<impl Storage>) -> io::Result<()> {
        let blocks = blocks(&old.storage, old.header, || {}).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let without_room = blocks.len().saturating_sub(self.header.blocks as usize);
        let mut before = 0;
        for block in &blocks[without_room..] {
            if !block.follows || block.sequence - 1 != before {
                self.last_at = None;
            }
            before = block.sequence;
            self.used = BLOCK;
            let mut result = Ok(());
            read_block(&old.storage, *block, old.header, &mut |record| {
                if result.is_ok() {
                    result = self.append(block.first_at, record);
                }
            });
            result?;
        }
        (self.used, self.last_at) = (BLOCK, None);
        Ok(())
    }

    /// The storage.
    pub fn storage(&self) -> &S {
        &self.storage
    }
}

/// The blocks that have been written, in the order of the file. Calls `pause` for each block.
fn written(storage: &impl Storage, header: Header, pause: fn()) -> impl Iterator<Item = Block> {
    (0..u64::from(header.blocks)).filter_map(move |number| {
        pause();
        let mut bytes = [0; BLOCK_HEADER];
        storage.read(offset_of(number), &mut bytes).ok()?;
        Block::decode(&bytes).filter(|block| block.sequence % u64::from(header.blocks) == number)
    })
}

/// The blocks that have been written, the oldest first.
fn blocks(storage: &impl Storage, header: Header, pause: fn()) -> Result<Vec<Block>, TryReserveError> {
    let mut blocks = Vec::new();
    // A large file has a million of them.
    blocks.try_reserve_exact(header.blocks as usize)?;
    blocks.extend(written(storage, header, pause));
    blocks.sort_unstable_by_key(|block| block.sequence);
    Ok(blocks)
}

/// A reader of a ring. It knows the blocks that there were when it was made.
#[derive(Debug)]
pub struct Reader<S> {
    storage: S,
    header: Header,
    blocks: Vec<Block>,
    pause: fn(),
}

impl<S: Storage> Reader<S> {
    /// Makes it. `pause` is called for each block that is read, now and later; it may unwind.
    pub fn open(storage: S, pause: fn()) -> Result<Self, Unusable> {
        let header = Header::read(&storage)?;
        let blocks = blocks(&storage, header, pause)?;
        Ok(Reader { storage, header, blocks, pause })
    }

    /// The time of the oldest record.
    pub fn first_time(&self) -> Option<i64> {
        self.blocks.first().map(|block| block.first_at)
    }

    /// The last record that can be decoded.
    pub fn last<T>(&self, mut decode: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        // If the writer was killed while it began a block, that has no record.
        self.blocks.iter().rev().find_map(|block| {
            let mut last = None;
            self.read_block(*block, |record| last = decode(record).or(last.take()));
            last
        })
    }

    /// Passes the records of the blocks that can have some from the time `from` until `until` to `visit`, the oldest
    /// first. The first and the last of them may lie outside.
    pub fn each(&self, from: i64, until: i64, mut visit: impl FnMut(&[u8])) {
        for (nth, block) in self.blocks.iter().enumerate() {
            let ends_before = |next: &Block| {
                // Only of neighbors is it known.
                next.follows && next.sequence - 1 == block.sequence && next.first_at < from
            };
            let is_outside = block.first_at > until || self.blocks.get(nth + 1).is_some_and(ends_before);
            if !is_outside {
                self.read_block(*block, &mut visit);
            }
        }
    }

    fn read_block(&self, block: Block, mut visit: impl FnMut(&[u8])) {
        (self.pause)();
        read_block(&self.storage, block, self.header, &mut visit);
    }
}

fn read_block(storage: &impl Storage, block: Block, header: Header, visit: &mut impl FnMut(&[u8])) {
    let mut bytes = [0; BLOCK];
    let mut start = BLOCK_HEADER;
    // The second time from where the first has found something incomplete: perhaps it was being written.
    for _ in 0..2 {
        if storage.read(block.offset(header), &mut bytes).is_err() || bytes[..BLOCK_HEADER] != block.encode() {
            return;
        }
        while let Some(record) = record_at(&bytes, start, block.sequence) {
            visit(record);
            start += RECORD_HEADER + record.len();
        }
    }
}

/// The record that starts there. `None` if there is no complete one.
fn record_at(block: &[u8; BLOCK], start: usize, sequence: u64) -> Option<&[u8]> {
    let bytes = block.get(start..).filter(|bytes| bytes.len() > RECORD_HEADER)?;
    let length = number(bytes) as usize;
    let record = bytes[RECORD_HEADER..].get(..length).filter(|record| !record.is_empty())?;
    (checksum(sequence, record) == number(&bytes[4..])).then_some(record)
}

#[cfg(test)]
mod tests;
