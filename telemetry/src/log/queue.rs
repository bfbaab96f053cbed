//! A bounded queue of lines and the thread that writes them out.

use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::Level;

use super::own_line;

/// Bytes of lines that may wait. As many again may be on their way out.
const ROOM: usize = 1 << 20;
/// What an empty buffer keeps of its memory.
const KEPT: usize = 64 << 10;
/// How often what the limits suppressed is said, and how long a descriptor that is full and does not block is left
/// alone.
const TICK: Duration = Duration::from_secs(1);
const FULL: Duration = Duration::from_millis(10);

/// Lines that wait to be written.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Something waits.
    came: Condvar,
    /// Nothing waits and nothing is being written.
    done: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// Lines that found no room behind these.
    lost: u64,
    writing: bool,
}

impl Queue {
    /// Takes a line, or loses it where there is no room. Never waits for the reader.
    pub(super) fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        if ROOM < waiting.lines.len() + line.len() {
            waiting.lost += 1;
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        waiting.lines.extend_from_slice(line);
        self.came.notify_one();
    }

    /// Lines that were lost since the process started.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Waits for all lines to be written, or for so long.
    pub(super) fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut waiting = self.waiting.lock();
        while waiting.writing || !waiting.lines.is_empty() {
            if self.done.wait_until(&mut waiting, until).timed_out() {
                return;
            }
        }
    }

    /// Writes lines as they come, and once a second those that `more` has. Never ends.
    pub(super) fn write_to(&self, out: impl Write, more: impl Fn() -> String) {
        let mut output = Output { out, cut: false, lost: 0 };
        let (mut lines, mut asked) = (Vec::new(), Instant::now());
        loop {
            let lost = self.take(&mut lines);
            if TICK <= asked.elapsed() {
                asked = Instant::now();
                lines.extend_from_slice(more().as_bytes());
            }
            if 0 < lost {
                lines.extend_from_slice(lost_line(lost).as_bytes());
            }
            self.lost.fetch_add(output.write(&lines), Relaxed);
            lines.clear();
            lines.shrink_to(KEPT);
        }
    }

    /// Waits for lines, a second at most; the number of those that were lost after them.
    fn take(&self, lines: &mut Vec<u8>) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.writing = false;
        if waiting.lines.is_empty() {
            self.done.notify_all();
            self.came.wait_for(&mut waiting, TICK);
        }
        std::mem::swap(&mut waiting.lines, lines);
        waiting.writing = !lines.is_empty();
        std::mem::take(&mut waiting.lost)
    }
}

fn lost_line(lost: u64) -> String {
    own_line(Level::WARN, "lines were lost: stdout did not take them", ("lost", lost), None)
}

/// Where lines go, and what became of the last ones.
struct Output<W> {
    out: W,
    /// The last line was cut off.
    cut: bool,
    /// Lines that could not be written, and of which nobody was told.
    lost: u64,
}

impl<W: Write> Output<W> {
    /// Writes these lines, after a word on those that could not be written before; how many are lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if lines.is_empty() {
            return 0;
        }
        let mut before = Vec::new();
        if self.cut {
            before.push(b'\n');
        }
        if 0 < self.lost {
            before.extend_from_slice(lost_line(self.lost).as_bytes());
        }
        if self.write_bytes(&before) == before.len() {
            (self.cut, self.lost) = (false, 0);
            let written = self.write_bytes(lines);
            let (done, left) = lines.split_at(written);
            self.cut = done.last().is_some_and(|last| *last != b'\n');
            self.lost = count(left);
            return self.lost;
        }
        self.cut = true; // an empty line too many does no harm
        self.lost += count(lines);
        count(lines)
    }

    /// How many bytes were taken before an error.
    fn write_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.out.write(&bytes[done..]) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL),
                Err(_) => break, // nobody is at the other end, or the disk is full
            }
        }
        done
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that takes one write for each word it is given: so many bytes of it, or an error.
    struct Reader {
        words: Receiver<std::io::Result<usize>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let bytes = &bytes[..self.words.recv().unwrap_or(Ok(bytes.len()))?.min(bytes.len())];
            self.taken.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    type Words = Sender<std::io::Result<usize>>;
    type Taken = Arc<Mutex<Vec<u8>>>;

    fn started() -> (Arc<Queue>, Words, Taken) {
        let (queue, (words, heard)) = (Arc::new(Queue::default()), channel());
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (writing, reader) = (queue.clone(), Reader { words: heard, taken: taken.clone() });
        std::thread::spawn(move || writing.write_to(reader, String::new));
        (queue, words, taken)
    }

    fn text(taken: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(taken.lock().clone()).expect("text")
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_hears_how_many() {
        let (queue, words, taken) = started();
        let line = format!("{}\n", "x".repeat(999));
        let room = ROOM / line.len();
        for _ in 0..3 * room {
            queue.push(line.as_bytes()); // none of them waits
        }
        // What the writer has taken by now is between nothing and one whole buffer.
        let lost = queue.lost();
        assert!((room as u64..=2 * room as u64).contains(&lost), "{lost} of {}", 3 * room);
        drop(words); // it reads on
        queue.flush(LONG);
        let text = text(&taken);
        let (said, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('{'));
        assert_eq!(lines.len() as u64 + lost, 3 * room as u64, "each line was written or counted");
        let said = said.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        assert_eq!(said.map(|line| line["lost"].as_u64().expect("a number")).sum::<u64>(), lost);
        queue.push(b"later\n");
        queue.flush(LONG);
        assert!(taken.lock().ends_with(b"later\n"));
    }

    #[test]
    fn what_the_limits_suppressed_is_asked_for_once_a_second_however_many_lines_come() {
        let (queue, asked) = (Arc::new(Queue::default()), Arc::new(AtomicU64::new(0)));
        let (writing, counted, started) = (queue.clone(), asked.clone(), Instant::now());
        std::thread::spawn(move || {
            writing.write_to(std::io::sink(), || {
                counted.fetch_add(1, Relaxed);
                String::new()
            });
        });
        while asked.load(Relaxed) < 2 {
            queue.push(b"a line\n");
            queue.flush(LONG);
        }
        assert!(2 * TICK <= started.elapsed(), "{:?}", started.elapsed());
    }

    #[test]
    fn a_flush_waits_for_the_last_line_and_not_for_ever() {
        let (queue, words, taken) = started();
        queue.push(b"the last word\n");
        queue.flush(Duration::from_millis(1)); // nobody reads
        assert_eq!(text(&taken), "");
        words.send(Ok(4)).expect("it listens");
        words.send(Err(ErrorKind::Interrupted.into())).expect("it listens");
        words.send(Err(ErrorKind::WouldBlock.into())).expect("it listens");
        drop(words);
        queue.flush(LONG);
        assert_eq!((text(&taken).as_str(), queue.lost()), ("the last word\n", 0));
    }

    #[test]
    fn errors_lose_lines_and_end_nothing() {
        let (queue, words, taken) = started();
        for word in [Err(ErrorKind::BrokenPipe.into()), Ok(3), Err(ErrorKind::StorageFull.into())] {
            words.send(word).expect("it listens");
        }
        queue.push(b"first\n");
        while queue.lost() == 0 {
            std::thread::yield_now();
        }
        queue.push(b"second\nthird\n"); // three bytes of the word on the first come through
        while queue.lost() < 3 {
            std::thread::yield_now();
        }
        drop(words);
        queue.push(b"fourth\n");
        queue.flush(LONG);
        let text = text(&taken);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines.len(), lines[0].len(), lines[2]), (3, 3, "fourth"), "{text}");
        assert!(lines[1].contains("\"lost\":3"), "{text}");
    }
}
