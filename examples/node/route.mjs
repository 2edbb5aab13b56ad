// Ask modelsat which LLM should get an instruction.
//
//     npm ci && node route.mjs "If 3x + 7 = 22, what is x?" [127.0.0.1:50051]
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

const PROTO = fileURLToPath(new URL('../../proto', import.meta.url));
const TIMEOUT_MS = 2000;
// Retry if the server is overloaded or unreachable; grpc-js waits as long as the server says.
const SERVICE_CONFIG = JSON.stringify({
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: 'modelsat.v1.RouterService', method: 'Route' }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: '0.05s',
        maxBackoff: '1s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE', 'RESOURCE_EXHAUSTED'],
      },
    },
  ],
});

const [text, address = '127.0.0.1:50051'] = process.argv.slice(2);
const definition = await protoLoader.load('modelsat/v1/router_service.proto', {
  includeDirs: [PROTO],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { modelsat } = grpc.loadPackageDefinition(definition);
const client = new modelsat.v1.RouterService(address, grpc.credentials.createInsecure(), {
  'grpc.service_config': SERVICE_CONFIG,
});
const metadata = new grpc.Metadata();
if (process.env.MODELSAT_TOKEN) {
  metadata.set('authorization', `Bearer ${process.env.MODELSAT_TOKEN}`);
}

const request = { text, policy: { willingness_to_pay_usd: 0.1, ranking_size: 3 } };
const options = { deadline: Date.now() + TIMEOUT_MS };
client.Route(request, metadata, options, (error, answer) => {
  if (error) {
    console.error(`error: ${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
  } else {
    for (const { candidate, probability } of answer.ranking) {
      console.log(`${probability.toFixed(3)}  ${candidate.replace('candidates/', '')}`);
    }
    console.log(answer.reason);
  }
  client.close();
});
