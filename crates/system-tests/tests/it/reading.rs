//! A container that reads and writes, beside anything that happens to its node.

use std::sync::Barrier;
use std::thread;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use system_tests::Numbered;
use system_tests::cri::{Cri, Pod};
use system_tests::kubernetes::{Node, Options};

/// Files that a container reads during one fault, and how they are spread over the time that it takes.
pub(crate) const BATCH: u64 = 8;
pub(crate) const SCRIPT: &str = r#"
for number in $FILES; do
    sha256sum -c /sums/$number
    cat /data/$number > /copy-$number
    echo more >> /data/$number
    [ "$(stat -c %s /data/$number)" = $(($(stat -c %s /copy-$number) + 5)) ]
    sleep 0.05
done
"#;

/// A node on which nothing arrives but what is read, and a container that has read nothing yet.
pub(crate) struct Reading {
    pub(crate) node: Node,
    pub(crate) options: Options,
    pub(crate) numbered: Numbered,
    pub(crate) pod: Pod,
    pub(crate) container: String,
    pub(crate) image: String,
    pub(crate) next: u64,
}

impl Reading {
    pub(crate) fn start(batches: u64) -> anyhow::Result<Reading> {
        Reading::start_with(batches, &[])
    }

    /// With settings of the fetcher.
    pub(crate) fn start_with(batches: u64, fetcher: &[&str]) -> anyhow::Result<Reading> {
        let fetcher = fetcher.iter().map(|setting| (*setting).to_owned()).collect();
        Reading::start_on(batches, Options { fetcher, ..Options::default() })
    }

    pub(crate) fn start_on(batches: u64, options: Options) -> anyhow::Result<Reading> {
        let mut options = Options { services: true, ..options };
        options.settings.push("frontend.background=false".to_owned());
        let node = Node::start(&options)?;
        let numbered = Numbered { files: batches * BATCH, len: 600_000, seed: 10 };
        let image = numbered.pull(&node, "app")?;
        let pod = node.cri.pod("one")?;
        let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
        Ok(Reading { node, options, numbered, pod, container, image, next: 0 })
    }

    /// Does something to the node while the container reads files that it never read before, and changes them.
    pub(crate) fn during(
        &mut self,
        fault: impl FnOnce(&mut Node, &Options) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let numbers = self.next..self.next + BATCH;
        self.next = numbers.end;
        // A connection of its own: the node is the fault's.
        let cri = Cri::connect(&self.node.containerd.socket())?;
        let files: Vec<String> = numbers.clone().map(|number| number.to_string()).collect();
        let script = format!("FILES='{}'\n{SCRIPT}", files.join(" "));
        let (container, both) = (self.container.clone(), Barrier::new(2));
        let (node, options) = (&mut self.node, &self.options);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                both.wait();
                cri.exec(&container, &["/bin/sh", "-euc", &script])
            });
            both.wait();
            fault(node, options)?;
            reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
            anyhow::Ok(())
        })?;
        self.check_copies(numbers)
    }

    /// The container reads files, of which nobody changes any.
    pub(crate) fn reads_on(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        self.numbered.read_inside(&self.node, &self.container, numbers)
    }

    /// What the container wrote, as the host sees it.
    pub(crate) fn check_copies(&self, numbers: std::ops::Range<u64>) -> anyhow::Result<()> {
        let root = self.node.root_of(&self.container);
        for number in numbers {
            let copy = std::fs::read(root.join(format!("copy-{number}")))?;
            anyhow::ensure!(copy == self.numbered.bytes(number), "the copy of {number} is wrong");
            let changed = std::fs::read(root.join(format!("data/{number}")))?;
            anyhow::ensure!(changed == [copy, b"more\n".to_vec()].concat(), "the changed {number} is wrong");
        }
        Ok(())
    }
}

/// Does something while a read waits for the cache, which goes on afterwards.
pub(crate) fn while_a_read_waits(
    node: &mut Node,
    fault: impl FnOnce(&mut Node) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cache = node.backend()?.cache.server.id();
    let cache = Pid::from_raw(cache as i32).context("the cache's process id")?;
    kill_process(cache, Signal::STOP)?;
    node.settle(|_| node.requests_waiting().is_ok_and(|waiting| waiting > 0))?;
    fault(node)?;
    Ok(kill_process(cache, Signal::CONT)?)
}
