use arges_model::*;
use arges_model::synth::*;
fn main(){
  let a: Vec<String> = std::env::args().collect();
  if a[1]=="inspect" { let c=Config::from_file(a[2].as_ref()).unwrap(); println!("{}", Accounting::of(&c, 1<<20, 1, DType::Bf16, DType::Bf16)); return; }
  if a[1]=="open" { let t=std::time::Instant::now(); let c=Checkpoint::open(a[2].as_ref()).unwrap(); println!("{:?} {}", t.elapsed(), c.weight_bytes()); return; }
  let dialect = if a[1]=="hf" {Dialect::MiniMax} else {Dialect::MiniMaxM1};
  let s = if a[1]=="B" { SynthShape{hidden:1536,layers:16,heads:16,kv_heads:4,head_dim:128,rotary_dim:64,experts:16,intermediate:1280,vocab:32000,..Default::default()} }
   else if a[1]=="hf" {SynthShape{dialect, rotary_dim:64, ..Default::default()}} else { Default::default() };
  for threads in [1,2] {
  let t=std::time::Instant::now();
  let o=SynthOptions{dtype:a[3].parse().unwrap(),overwrite:true,threads,shard_bytes: 100_000_000, ..Default::default()};
  let mut last=0; let mut made=None;
  write_checkpoint(&s.config().unwrap(), a[2].as_ref(), &o, &mut |p| {last=p.bytes_done; if p.bytes_done==p.bytes_total {made=Some(t.elapsed())}}).unwrap();
  println!("threads {threads}: {last} bytes, all written {:?}, done {:?}", made, t.elapsed());
  }
}
