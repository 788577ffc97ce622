/** Locks in Node.js: `npm install && npm run build && node main.mjs` */
import { demo } from './demo.mjs';

await demo(console.log);
