//! Turns an object into loaded, attached programs and their maps.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use aya::{
    Btf as LoaderBtf, Ebpf, EbpfLoader, Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, Queue, RingBuf},
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use headroom_abi::{
    MARKS_PER_PAGE, MAX_SLOTS, OVERFLOW_SLOT, record,
    syscall::{Architecture, TABLE_LEN, call_table},
};
use headroom_telemetry::Fact;

use super::{
    KernelConfig, KernelError, Layout, Topic, attach,
    btf::Btf,
    detail,
    duty::{SharedMaps, Taps},
    fields::{self, Offsets},
    hardware::{self, Opened, PerfEvent},
    log::ToTracing,
    mapped::Mapped,
    marks::MarkMaps,
    object,
};
use crate::resident;

const TYPE_INFO: &str = "/sys/kernel/btf/vmlinux";

/// Ranges of numbers, ascending: `0-3,8`.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// Set in `thread_info.status` of x86 during a call through the 32-bit interface.
const TS_COMPAT: u32 = 2;

/// Lets a record cross the kernel boundary as bytes.
macro_rules! kernel_record {
    ($($name:ident = $record:ty;)*) => {
        $(
            #[derive(Clone, Copy)]
            #[repr(transparent)]
            pub(super) struct $name(pub(super) $record);

            // SAFETY: `repr(transparent)` over a record of integers without padding, for which
            // any bytes are valid; the record's crate asserts its size.
            unsafe impl aya::Pod for $name {}
        )*
    };
}

kernel_record! {
    Key = record::CgroupKey;
    Cache = record::SlotCache;
    Task = record::TaskCounters;
    Sampled = record::SampledCounters;
    Latency = record::ClassLatency;
    Numbers = record::CallNumbers;
    Gate = record::Gate;
    Page = record::Marks;
    Events = record::EventCounters;
    Block = record::BlockCounters;
    Net = record::NetCounters;
    Streams = record::StreamEnds;
    DeviceId = record::DeviceKey;
    Device = record::DeviceCounters;
    PageCache = record::CacheCounters;
    Loss = record::Losses;
}

/// The maps that user space reads or writes.
pub(super) struct Maps {
    pub(super) slots: HashMap<MapData, Key, u32>,
    pub(super) free_slots: Queue<MapData, u32>,
    pub(super) shared: SharedMaps,
    pub(super) marks: MarkMaps,
    /// By slot, then by CPU.
    pub(super) tasks: Mapped<Task>,
    pub(super) sampled: Mapped<Sampled>,
    pub(super) class_latency: Array<MapData, Latency>,
    pub(super) call_numbers: PerCpuArray<MapData, Numbers>,
    pub(super) blocks: PerCpuArray<MapData, Block>,
    pub(super) nets: PerCpuArray<MapData, Net>,
    pub(super) block_streams: Array<MapData, Streams>,
    pub(super) devices: HashMap<MapData, DeviceId, Device>,
    pub(super) event_counts: PerCpuArray<MapData, Events>,
    /// Keeps the hardware counters open.
    pub(super) hardware_events: [MapData; record::hardware::COUNT],
    pub(super) caches: PerCpuArray<MapData, PageCache>,
    pub(super) losses: PerCpuArray<MapData, Loss>,
    pub(super) cgroup_events: RingBuf<MapData>,
    pub(super) exec_events: RingBuf<MapData>,
    /// Taken by whoever listens.
    pub(super) pace_events: Option<RingBuf<MapData>>,
}

/// Everything that loading yields.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) logger: Option<EbpfLogger<ToTracing>>,
    pub(super) layout: Layout,
    pub(super) states: Vec<(Topic, Fact<String>)>,
    pub(super) taps: Taps,
    pub(super) cpus_per_slot: u32,
    pub(super) hardware: hardware::States,
}

/// Hands back to the system what only starting needed: freed memory, as reading the kernel's type
/// information takes many times what is kept of it and the allocator would hold it for good; and the
/// pages of this program's file, code and constants, of which a tick needs a small part and fetches
/// that again from the page cache.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and any thread may make it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    if let Err(error) = resident::let_go(resident::Files::Program) {
        tracing::debug!(%error, "pages of the program stay resident");
    }
}

/// Loads the object and attaches every topic that this kernel can serve.
pub(super) fn load(config: &KernelConfig) -> Result<Loaded, KernelError> {
    if !(OVERFLOW_SLOT + 2..=MAX_SLOTS).contains(&config.slots) {
        return Err(KernelError::Slots { slots: config.slots });
    }
    let object = object::find(config)?;
    if !may_load() {
        return Err(KernelError::NotPermitted);
    }
    let layout = Layout::detect().map_err(KernelError::Hierarchies)?;
    let path = config.type_info.as_deref().unwrap_or(Path::new(TYPE_INFO));
    let type_info =
        fs::read(path).map_err(|source| KernelError::TypeInfo { path: path.to_owned(), source })?;
    let offsets = Offsets::find(&Btf::parse(&type_info)?);
    drop(type_info);
    let loader_btf = LoaderBtf::from_sys_fs()?;

    let has_detail = detail::fits(config, nr_cpus().unwrap_or(1) as u64);
    let hardware = open_hardware(config);
    let sizes = Sizes {
        has_detail: has_detail.is_known(),
        has_hardware: hardware.is_any(),
        cpus_per_slot: n_cpu_ids(Path::new(POSSIBLE_CPUS))?,
    };
    let mut ebpf = load_object(&object, config, &layout, &offsets, &loader_btf, sizes)?;
    let mut maps = Maps::take(&mut ebpf, &object.origin)?;
    let hardware = hardware.hand_to(&maps.hardware_events).unwrap_or_else(|error| {
        Opened::none(&format!("hardware counters cannot be handed to programs: {error}")).states
    });
    for slot in OVERFLOW_SLOT + 1..config.slots {
        maps.free_slots.push(slot, 0).map_err(in_map("FREE_SLOTS"))?;
    }
    let code_samples_hz = config.code_samples_hz;
    let host = attach::Host {
        btf: &loader_btf,
        layout: &layout,
        offsets: &offsets,
        code_samples_hz,
        hardware: &hardware,
    };
    let mut taps = Taps::default();
    let mut states: Vec<(Topic, Fact<String>)> = Topic::ALL
        .into_iter()
        .map(|topic| (topic, attach::attach(&mut ebpf, topic, &host, &mut taps)))
        .collect();
    detail::settle(&mut states, has_detail);
    let logger = EbpfLogger::init_with_logger(&mut ebpf, ToTracing)
        .inspect_err(|error| tracing::warn!(%error, "messages of kernel programs are not read"))
        .ok();
    Ok(Loaded {
        ebpf,
        maps,
        logger,
        layout,
        states,
        taps,
        cpus_per_slot: sizes.cpus_per_slot,
        hardware,
    })
}

/// What sizes of maps follow from beside the number of slots.
#[derive(Clone, Copy)]
struct Sizes {
    /// Whether maps of details have an entry for every slot.
    has_detail: bool,
    /// Whether the map of hardware counters has one.
    has_hardware: bool,
    /// Entries of each slot in maps that are mapped into memory and count by CPU.
    cpus_per_slot: u32,
}

/// As many numbers as CPUs of this host can have, those among them that no CPU has included; `path` is
/// [`POSSIBLE_CPUS`].
fn n_cpu_ids(path: &Path) -> Result<u32, KernelError> {
    let found = fs::read_to_string(path).unwrap_or_default();
    let last = found.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    let n_ids = last.and_then(|last| last.checked_add(1));
    n_ids.ok_or_else(|| KernelError::Cpus { path: path.to_owned(), found })
}

fn open_hardware(config: &KernelConfig) -> Opened {
    if !config.hardware_counters {
        return Opened::none("switched off by observe.kernel.hardware_counters");
    }
    Opened::open(&config.hardware_events.unwrap_or_else(PerfEvent::of_this_host))
}

fn load_object(
    object: &object::Object,
    config: &KernelConfig,
    layout: &Layout,
    offsets: &Offsets,
    btf: &LoaderBtf,
    sizes: Sizes,
) -> Result<Ebpf, KernelError> {
    // Without a table the topic is not attached, and the table's content does not matter.
    let calls = Architecture::current().map_or([0; TABLE_LEN], call_table);
    let is_x86 = Architecture::current() == Some(Architecture::X86_64);
    let tells_compat = is_x86 && offsets.missing(&fields::TASK_STATUS).is_none();
    let compat_status = if tells_compat { TS_COMPAT } else { 0 };
    let has_call_numbers = u32::from(sizes.has_detail);
    let has_hardware = u32::from(sizes.has_hardware);
    let (task_hierarchy, block_hierarchy) = (layout.task.code(), layout.block.code());
    let hierarchies_told = layout.numbers_told();
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("SYSCALL_TABLE", &calls, true)
        .override_global("COMPAT_STATUS", &compat_status, true)
        .override_global("HAS_CALL_NUMBERS", &has_call_numbers, true)
        .override_global("HAS_HARDWARE_EVENTS", &has_hardware, true)
        .override_global("TASK_HIERARCHY", &task_hierarchy, true)
        .override_global("HIERARCHIES_TOLD", &hierarchies_told, true)
        .override_global("BLOCK_HIERARCHY", &block_hierarchy, true);
    for (variable, offset) in &offsets.variables {
        loader.override_global(variable, offset, true);
    }
    let page_shift = page_shift();
    loader.override_global("PAGE_SHIFT", &page_shift, true);
    let by_slot = ["SLOTS", "FREE_SLOTS", "SAMPLED", "BLOCKS", "BLOCK_STREAMS", "CACHES", "NETS"];
    for map in by_slot {
        loader.map_max_entries(map, config.slots);
    }
    loader.map_max_entries("TASKS", config.slots.saturating_mul(sizes.cpus_per_slot));
    loader.override_global("CPUS_PER_SLOT", &sizes.cpus_per_slot, true);
    loader.map_max_entries("MARKS", config.slots.div_ceil(MARKS_PER_PAGE as u32));
    for map in ["CLASS_LATENCY", "CALL_NUMBERS"].into_iter().filter(|_map| sizes.has_detail) {
        loader.map_max_entries(map, config.slots);
    }
    if sizes.has_hardware {
        loader.map_max_entries("EVENT_COUNTS", config.slots);
    }
    loader.load(&object.bytes).map_err(|source| KernelError::Load {
        origin: object.origin.clone(),
        source: Box::new(source),
    })
}

impl Maps {
    fn take(ebpf: &mut Ebpf, origin: &str) -> Result<Self, KernelError> {
        fn take<M: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            origin: &str,
            map: &'static str,
        ) -> Result<M, KernelError> {
            take_map(ebpf, origin, map)?.try_into().map_err(in_map(map))
        }
        fn mapped<V: Pod>(
            ebpf: &mut Ebpf,
            origin: &str,
            map: &'static str,
        ) -> Result<Mapped<V>, KernelError> {
            Mapped::new(take_map(ebpf, origin, map)?, map)
        }
        Ok(Self {
            slots: take(ebpf, origin, "SLOTS")?,
            free_slots: take(ebpf, origin, "FREE_SLOTS")?,
            shared: SharedMaps {
                gates: Arc::new(Mutex::new(take(ebpf, origin, "GATES")?)),
                caches: Arc::new(take(ebpf, origin, "TASK_CACHE")?),
            },
            marks: MarkMaps {
                round: take(ebpf, origin, "ROUND")?,
                pages: mapped(ebpf, origin, "MARKS")?,
            },
            tasks: mapped(ebpf, origin, "TASKS")?,
            sampled: mapped(ebpf, origin, "SAMPLED")?,
            class_latency: take(ebpf, origin, "CLASS_LATENCY")?,
            call_numbers: take(ebpf, origin, "CALL_NUMBERS")?,
            blocks: take(ebpf, origin, "BLOCKS")?,
            nets: take(ebpf, origin, "NETS")?,
            block_streams: take(ebpf, origin, "BLOCK_STREAMS")?,
            devices: take(ebpf, origin, "DEVICES")?,
            event_counts: take(ebpf, origin, "EVENT_COUNTS")?,
            hardware_events: [
                take_events(ebpf, origin, "CYCLES")?,
                take_events(ebpf, origin, "INSTRUCTIONS")?,
                take_events(ebpf, origin, "CACHE_MISSES")?,
                take_events(ebpf, origin, "BRANCH_MISSES")?,
            ],
            caches: take(ebpf, origin, "CACHES")?,
            losses: take(ebpf, origin, "LOSSES")?,
            cgroup_events: take(ebpf, origin, "CGROUP_EVENTS")?,
            exec_events: take(ebpf, origin, "EXEC_EVENTS")?,
            pace_events: Some(take(ebpf, origin, "PACE_EVENTS")?),
        })
    }
}

fn take_map(ebpf: &mut Ebpf, origin: &str, map: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(map).ok_or_else(|| KernelError::NoMap { origin: origin.to_owned(), map })
}

/// A map of opened counters. The library has a type for such maps only as buffers of records.
fn take_events(ebpf: &mut Ebpf, origin: &str, map: &'static str) -> Result<MapData, KernelError> {
    match ebpf.take_map(map) {
        Some(Map::PerfEventArray(found)) => Ok(found),
        _ => Err(KernelError::NoMap { origin: origin.to_owned(), map }),
    }
}

/// Bytes of a page, as a power of two.
fn page_shift() -> u64 {
    const SMALLEST: libc::c_long = 4096;
    // SAFETY: has no preconditions.
    let n_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::from(n_bytes.max(SMALLEST).trailing_zeros())
}

/// Adds the map's name to an error.
pub(super) fn in_map(map: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { map, source }
}

/// Whether this process has the capabilities that loading needs. When its own status cannot be
/// read, the kernel is left to say no.
fn may_load() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF_AND_PERFMON: u64 = 1 << 39 | 1 << 38;
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return true };
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_none_or(|has| has & SYS_ADMIN != 0 || has & BPF_AND_PERFMON == BPF_AND_PERFMON)
}
