// Times llama.cpp's prompt processing: for every line on stdin, evaluates the tokens once in an empty
// context and prints the milliseconds.
//
//     node llama_cpp.mjs MODEL.gguf THREADS TOKENS        (see llama_cpp.py)
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [model, threads, count] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", maxThreads: Number(threads)});
const loaded = await llama.loadModel({modelPath: model});
const size = Number(count);
const context = await loaded.createContext({contextSize: 512, batchSize: 512, threads: Number(threads)});
const sequence = context.getSequence();
const tokens = Array.from({length: size}, (_, i) => 100 + i);
console.log("ready");
for await (const _ of createInterface({input: process.stdin})) {
  await sequence.clearHistory();
  const begun = performance.now();
  await sequence.controlledEvaluate([...tokens.slice(0, -1), [tokens.at(-1), {generateNext: {token: true}}]]);
  console.log(performance.now() - begun);
}
process.exit(0);
